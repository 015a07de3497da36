"""
Decide which settings exist: names, types, defaults, and what each is for.

Every block is a settings class with a prefix of its own, so that
``PREFECT_LOGGING_TO_API_BATCH_SIZE`` can only mean one thing. Values come from
`runlog.settings.sources`; `runlog.settings.catalog` lists what is declared here
for the documentation, the templates and the command line.

Settings that Prefect has keep Prefect's name; what only runlog has begins with
``RUNLOG_``. Objects are immutable, and their ``repr`` shows no secret.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic evaluates the annotations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from runlog.exceptions import SettingsError
from runlog.redaction import MASK, is_sensitive_key, redact_text, register_secret, register_sensitive_key
from runlog.settings.sources import Layer, LayerSource
from runlog.settings.values import (
    RETENTION,
    URL,
    FilePath,
    Headers,
    Level,
    Names,
    Retention,
    Seconds,
    absolute_path,
)


def _default_home() -> Path:
    try:
        return absolute_path(Path("~/.runlog"))
    except ValueError as error:
        raise SettingsError(
            "RUNLOG_HOME is not set, and this user has no home directory",
            key="RUNLOG_HOME",
            expected="the path of a directory",
            remedy="set RUNLOG_HOME to a directory that this program may write to",
        ) from error


def setting(
    default: Any,
    description: str,
    expected: str,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
    default_text: str | None = None,
) -> Any:
    """
    Declare a setting.

    Args:
        default: Its default, or a function without arguments that returns it.
        description: What it is for, in whole sentences.
        expected: What its value looks like; messages say "expected ...".
        name: Name in the environment; by default the block's prefix and the field's name.
        aliases: Other names that are read, each weaker than the one before it.
        secret: Whether its value is never shown, substituted or handed on.
        default_text: The default as users should read it, where its own text says too little.
    """
    extra: dict[str, Any] = {
        "name": name,
        "aliases": list(aliases),
        "expected": expected,
        "secret": secret,
        "default_text": default_text,
    }
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra)
    return Field(default, description=description, json_schema_extra=extra)


LEAST_PASSWORD = 8
"""Characters of a password that is masked wherever it occurs, also without the user's name before it."""

SWITCH = "true or false"
SECONDS = "a number of seconds, 0 or more"
BYTES = "a whole number of bytes, 1 or more"
LEVEL = "the name of a log level"
TEXT = "text"


# --- blocks ---------------------------------------------------------------------------------------


class Block(BaseSettings):
    """What all blocks have in common."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, env_prefix=""
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - see runlog.settings.sources
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the layers of the load that is under way."""
        return init_settings, LayerSource(settings_cls)

    def __repr_args__(self) -> Any:
        """Show no password that stands in an address, and no header that is a credential."""
        for name, value in super().__repr_args__():
            yield name, redacted(value)


def redacted(value: Any) -> Any:
    """Return the value of a setting as it may be shown."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    return value


class APISettings(Block):
    """``settings.api``: the log server that lines are sent to and read from."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_API_")

    url: URL | None = setting(
        None,
        "Address of the log server's API, runlog's or Prefect's. Without it the server that runs on this "
        "machine is used, whenever one does.",
        "an address such as http://127.0.0.1:4210/api",
    )
    key: SecretStr | None = setting(None, "API key; sent as a Bearer token.", TEXT, secret=True)
    auth_string: SecretStr | None = setting(
        None, "Sent as Basic authentication; wins over the key.", "user:password", secret=True
    )


class ClientSettings(Block):
    """``settings.client``: how the log server is spoken to."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_CLIENT_")

    custom_headers: Headers = setting(
        dict,
        "Headers of every request to the log server. An Authorization among them wins over key and "
        "auth string. The whole setting counts as secret, because credentials travel in headers of any name.",
        'a JSON object of texts, such as {"X-Team": "data"}',
        secret=True,
        default_text="{}",
    )


class LoggingToAPISettings(Block):
    """``settings.logging.to_api``: what is sent to the log server, and when."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_LOGGING_TO_API_")

    enabled: bool = setting(
        default=True,
        description="Whether lines are sent to the log server. Looked up for every line.",
        expected=SWITCH,
        aliases=("PREFECT_LOGGING_ORION_ENABLED",),
    )
    batch_interval: Seconds = setting(
        2.0,
        "Longest time that a line waits to be sent; 0 sends at once. While it is not set, a line goes at "
        "once unless a batch went in the last tenth of a second.",
        SECONDS,
        aliases=("PREFECT_LOGGING_ORION_BATCH_INTERVAL",),
    )
    batch_size: Annotated[int, Field(ge=1)] = setting(
        4_000_000,
        "Most bytes in one request to the log server.",
        BYTES,
        aliases=("PREFECT_LOGGING_ORION_BATCH_SIZE",),
    )
    max_log_size: Annotated[int, Field(ge=1)] = setting(
        1_000_000,
        "Most bytes of one line; a longer one is cut and marked. At most the size of a batch.",
        BYTES,
        aliases=("PREFECT_LOGGING_ORION_MAX_LOG_SIZE",),
    )
    when_missing_flow: Literal["warn", "error", "ignore"] = setting(
        "warn",
        "What happens when a line that belongs to no run reaches the handler: a warning that points at the "
        "line of code, an exception there, or nothing. Such a line is not sent in any case.",
        "one of warn, error, ignore",
        aliases=("PREFECT_LOGGING_ORION_WHEN_MISSING_FLOW",),
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.max_log_size > self.batch_size:
            raise ValueError(
                f"PREFECT_LOGGING_TO_API_MAX_LOG_SIZE is {self.max_log_size} bytes, expected at most "
                f"PREFECT_LOGGING_TO_API_BATCH_SIZE, which is {self.batch_size} bytes; "
                "lower the one or raise the other"
            )
        return self


class LoggingSettings(Block):
    """``settings.logging``: levels, configuration and console."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_LOGGING_")

    level: Level = setting(
        "INFO",
        "Least level of the lines of runs and of runlog's own loggers, in any case. Levels that were added "
        "with logging.addLevelName count.",
        LEVEL,
        aliases=("PREFECT__LOGGING__LEVEL",),
    )
    config_path: FilePath | None = setting(
        None,
        "A logging configuration to use instead of the packaged one, as a whole.",
        "the path of a YAML file",
        aliases=("PREFECT_LOGGING_SETTINGS_PATH",),
        default_text="$RUNLOG_HOME/logging.yml if it exists, else the packaged file",
    )
    extra_loggers: Names = setting(
        (),
        "Loggers of other libraries whose lines are sent to the log server as well.",
        "names, separated by commas",
    )
    log_prints: bool = setting(
        default=False,
        description="Whether what a run prints is logged, unless the run says otherwise.",
        expected=SWITCH,
    )
    colors: bool = setting(
        default=True, description="Whether the console uses colours, on a terminal.", expected=SWITCH
    )
    markup: bool = setting(
        default=False,
        description="Whether the console reads markup such as [red]...[/red] in messages.",
        expected=SWITCH,
    )
    format: str | None = setting(
        None,
        "Replaces the format of the formatter 'standard' in the packaged logging configuration; of all "
        "lines, those of runs included.",
        "a format in the style of %, such as %(levelname)s %(message)s",
        name="RUNLOG_LOGGING_FORMAT",
        aliases=("PREFECT__LOGGING__FORMAT",),
    )
    to_api: LoggingToAPISettings = Field(default_factory=LoggingToAPISettings)


class DeliverySettings(Block):
    """``settings.delivery``: what waits between a log call and the log server."""

    model_config = SettingsConfigDict(env_prefix="RUNLOG_DELIVERY_")

    max_queue_bytes: Annotated[int, Field(ge=65_536)] = setting(
        16 * 1024 * 1024,
        "Most memory that lines take while they wait to be sent, per target, with durability memory or "
        "while the disk takes nothing.",
        "a whole number of bytes, 65536 or more",
    )
    max_spool_bytes: Annotated[int, Field(ge=1_048_576)] = setting(
        1024 * 1024 * 1024,
        "Most disk space that lines take while they wait to be sent, per target.",
        "a whole number of bytes, 1048576 or more",
    )
    when_full: Literal["block", "drop_oldest", "drop_newest"] = setting(
        "block",
        "What happens to a line for which there is no room: wait a moment, then drop it; drop the oldest "
        "that waits; drop the new one. What is dropped is counted, and the log server is told.",
        "one of block, drop_oldest, drop_newest",
    )
    block_timeout: Seconds = setting(
        0.1, "Longest time that a log call waits for room, with when_full=block.", SECONDS
    )
    shutdown_timeout: Seconds = setting(
        5.0, "Longest time that the end of the program waits until all lines are delivered.", SECONDS
    )


class ServiceSettings(Block):
    """``settings.service``: the program, as OpenTelemetry names it."""

    model_config = SettingsConfigDict(env_prefix="RUNLOG_SERVICE_")

    name: str | None = setting(
        None,
        "OpenTelemetry's service.name. With a name, lines that belong to no run are sent as well.",
        TEXT,
    )
    version: str | None = setting(None, "OpenTelemetry's service.version.", TEXT)
    environment: str | None = setting(
        None, "OpenTelemetry's deployment.environment.name, such as production.", TEXT
    )


class ServerSettings(Block):
    """``settings.server``: the log server that `runlog server start` starts."""

    model_config = SettingsConfigDict(env_prefix="RUNLOG_SERVER_")

    host: str = setting("127.0.0.1", "Address that the server listens on.", "a host name or an IP address")
    port: Annotated[int, Field(ge=0, le=65_535)] = setting(
        4210, "Port that the server listens on; 0 takes a free one.", "a whole number from 0 to 65535"
    )
    database: str | None = setting(
        None,
        "Where the server keeps lines: an address of a database, or the path of an SQLite file.",
        "an address such as sqlite:////var/lib/runlog.db, or a path",
        default_text="sqlite:///$RUNLOG_HOME/runlog.db",
    )
    log_level: Level = setting(
        "WARNING",
        "Least level of the server's own lines.",
        LEVEL,
        aliases=("PREFECT_SERVER_LOGGING_LEVEL", "PREFECT_LOGGING_SERVER_LEVEL"),
    )
    auth_string: SecretStr | None = setting(
        None,
        "What clients must send as Basic authentication. Without it the server asks for none.",
        "user:password",
        name="PREFECT_SERVER_API_AUTH_STRING",
        secret=True,
    )
    allowed_origins: Names = setting(
        (),
        "Origins of web pages from elsewhere that may use the server, such as https://logs.example.org, "
        "where a proxy makes it known under another name.",
        "origins, separated by commas",
    )
    retention: Retention | None = setting(
        None,
        "How long lines are kept, by their timestamps and by when they came, whichever is later; without it, "
        "for ever. Levels may have ages of their own.",
        RETENTION,
        default_text="forever",
    )
    max_bytes: Annotated[int, Field(ge=1_048_576)] | None = setting(
        None,
        "Most space that lines and their indexes take; past it, the oldest lines go first. Without it, there "
        "is no limit but the disk.",
        "a whole number of bytes, 1048576 or more",
    )


class Settings(Block):
    """
    All settings; immutable. Read them with `runlog.settings.get_current_settings`.

    Built without a load (``Settings(...)``), they consist of arguments and
    defaults: environment and files are read by `runlog.settings.load_settings`.
    """

    model_config = SettingsConfigDict(env_prefix="RUNLOG_")

    home: FilePath = setting(
        _default_home,
        "Directory of runlog's own files: profiles, logging configuration, database.",
        "the path of a directory",
        default_text="~/.runlog",
    )
    profile: str | None = setting(
        None,
        "Profile in $RUNLOG_HOME/profiles.toml whose settings are used; by default the one that the file "
        "names as active.",
        "the name of a profile",
    )
    durability: Literal["memory", "spool", "sync"] = setting(
        "spool",
        "What a line survives once its log call has returned: a normal end of the program (memory), also a "
        "kill of the process (spool), also a power cut once runlog.flush() has returned (sync).",
        "one of memory, spool, sync",
    )
    redact_keys: Names = setting(
        (),
        "Names whose values are secrets, in extras and in text such as name=value, besides password, token, "
        "api_key and the like.",
        "names, separated by commas",
    )
    api: APISettings = Field(default_factory=APISettings)
    client: ClientSettings = Field(default_factory=ClientSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)

    _layers: tuple[Layer, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _register_secrets(self) -> Self:
        """Keep secrets out of all logs from now on, also those that are only loaded for a while."""
        for key in self.redact_keys:
            register_sensitive_key(key)
        if self.api.key is not None:
            register_secret(self.api.key.get_secret_value())
        for auth_string in (self.api.auth_string, self.server.auth_string):
            if auth_string is not None:
                _register_auth_string(auth_string.get_secret_value())
        _register_headers(self.client.custom_headers)
        return self


def _register_auth_string(value: str) -> None:
    register_secret(value)
    password = value.partition(":")[2]
    # The one of "admin:pass", which Prefect's documentation shows, would mask half of "passed" in all lines.
    if len(password) >= LEAST_PASSWORD:
        register_secret(password)


def _register_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if is_sensitive_key(name):
            scheme, _, credentials = value.strip().rpartition(" ")
            register_secret(credentials if scheme else value)
