from __future__ import annotations

import pytest
from storage_contract import StorageContract

from runlog.server.storage.memory import MemoryStorage


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    async def storage(self):
        storage = MemoryStorage()
        await storage.open()
        yield storage
        await storage.close()

    async def lose(self, storage, seqs):
        storage._lines = [line for line in storage._lines if line.seq not in seqs]
