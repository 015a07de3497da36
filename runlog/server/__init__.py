"""
The log server: takes batches in, stores each line once, answers questions about lines and runs.

::

    routes ──> ingest ──> storage        what arrives
    routes <── query  <── storage        what is asked for

`runlog.server.app` builds the application and runs it. Of the emit side the
server knows `runlog.records`, the wire schema, and nothing else.
"""
