"""Settings of the service that only its operator can set; none comes over REST."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from fedray.errors import ConfigError
from fedray.service.options import (
    BYTES,
    DAYS,
    IN_TOTAL,
    PATH,
    PER_ADDRESS,
    PER_CALL,
    PER_CLIENT,
    PER_FEDERATION,
    PER_FILE,
    SECONDS,
    option,
    options_of,
    read_texts,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MACHINE = "of the machine's memory"


@dataclass(frozen=True)
class Settings:
    """Settings of one service. Paths are on the service's own node.

    A limit named ``..._per_client`` is of one client, one of the same name without that
    is of all together. Without keys all who call are one client.
    """

    root: Annotated[
        str, option("folder that holds a folder for each federation", unit=PATH)
    ] = "~/.fedray/service"
    api_keys: Annotated[
        str | None,
        option("file of `fedray keys`", unit=PATH, unset="none: only this machine"),
    ] = None
    data_root: Annotated[
        str | None,
        option("folder that `data_path` may name", unit=PATH, unset="none: refused"),
    ] = None
    allow_custom_handlers: Annotated[
        bool, option("clients may upload data handlers, which are code that runs here")
    ] = False
    max_upload: Annotated[int, option("body with files", PER_CALL, BYTES)] = 2 * GIB
    body_timeout_s: Annotated[
        float,
        option("pause in a body; the least rate holds after twice that",
               PER_CALL, SECONDS, ge=0.1),
    ] = 20.0  # fmt: skip
    max_open: Annotated[int, option("federations that are not stopped", PER_CLIENT)] = (
        32
    )
    max_parties: Annotated[int, option("parties", PER_FEDERATION)] = 256
    shared_data_root: Annotated[
        bool, option("every client may name all data below the data root")
    ] = False
    require_privacy: Annotated[
        str | None,
        option("file of bounds that federations' privacy must keep to", unit=PATH,
               unset="none"),
    ] = None  # fmt: skip

    # what a call may send, and how slowly
    max_body: Annotated[int, option("body without files", PER_CALL, BYTES, ge=KIB)] = (
        1 * MIB
    )
    max_fields: Annotated[int, option("fields of a form", PER_CALL, ge=8)] = 128
    max_value: Annotated[int, option("value of a field", PER_CALL, BYTES, ge=KIB)] = (
        64 * KIB
    )
    max_headers: Annotated[int, option("headers", PER_CALL, BYTES, ge=KIB)] = 32 * KIB
    header_timeout_s: Annotated[
        float, option("from connecting to complete headers", PER_CALL, SECONDS, ge=0.1)
    ] = 20.0
    min_body_rate: Annotated[
        int, option("least bytes of a body in a second", PER_CALL, BYTES)
    ] = 16 * KIB
    answer_timeout_s: Annotated[
        float,
        option("pause in reading an answer, which then ends",
               PER_CALL, SECONDS, ge=0.1),
    ] = 60.0  # fmt: skip

    # at a time
    max_connections_per_address: Annotated[
        int, option("connections; a proxy is one address", PER_ADDRESS)
    ] = 512
    max_connections: Annotated[int, option("connections", IN_TOTAL)] = 1024
    max_calls_per_client: Annotated[
        int, option("calls at a time, but for waits of `/train`",
                    PER_CLIENT)
    ] = 200  # fmt: skip
    max_calls: Annotated[int, option("calls at a time", IN_TOTAL)] = 800
    max_stop_calls_per_client: Annotated[
        int, option("`/stop` and `/stop-party` at a time, on top", PER_CLIENT)
    ] = 64
    max_stop_calls: Annotated[
        int, option("`/stop` and `/stop-party` at a time, on top", IN_TOTAL)
    ] = 256
    max_bytes_in_flight_per_client: Annotated[
        int, option("bodies and answers in memory", PER_CLIENT, BYTES, ge=4 * MIB)
    ] = 64 * MIB
    max_bytes_in_flight: Annotated[
        int, option("bodies and answers in memory", IN_TOTAL, BYTES, ge=4 * MIB)
    ] = 256 * MIB

    # on disk
    max_disk_per_client: Annotated[
        int, option("federations' data, uploads under way", PER_CLIENT, BYTES)
    ] = 64 * GIB
    max_disk: Annotated[
        int | None,
        option("federations' data, uploads under way", IN_TOTAL, BYTES,
               unset="the whole disk"),
    ] = None  # fmt: skip
    min_free_disk: Annotated[
        int, option("disk that uploads leave free", IN_TOTAL, BYTES, ge=0)
    ] = 512 * MIB
    max_federations: Annotated[
        int, option("federations that are not stopped", IN_TOTAL)
    ] = 1000
    keep_stopped_days: Annotated[
        float | None,
        option("a stopped federation is deleted after", PER_FEDERATION, DAYS,
               unset="never", ge=0),
    ] = None  # fmt: skip
    end_idle_days: Annotated[
        float | None,
        option("one that nobody calls is stopped after",
               PER_FEDERATION, DAYS, unset="never", ge=0),
    ] = None  # fmt: skip

    # trainings; more of them wait
    max_trainings_per_client: Annotated[
        int, option("trainings at a time; more wait", PER_CLIENT)
    ] = 4
    max_trainings: Annotated[
        int, option("trainings at a time; more wait", IN_TOTAL)
    ] = 16
    max_party_processes_per_client: Annotated[
        int, option("processes of parties; trainings wait", PER_CLIENT)
    ] = 256
    max_party_processes: Annotated[
        int, option("processes of parties; trainings wait", IN_TOTAL)
    ] = 512
    max_training_s: Annotated[
        float,
        option("a training, which then ends; its model stays",
               PER_FEDERATION, SECONDS),
    ] = 7 * 86400.0  # fmt: skip
    max_memory_per_federation: Annotated[
        int | None,
        option("a training's memory, estimated", PER_FEDERATION, BYTES,
               unset=f"half {MACHINE}"),
    ] = None  # fmt: skip
    max_memory_per_client: Annotated[
        int | None,
        option("memory of trainings; more wait", PER_CLIENT, BYTES,
               unset=f"half {MACHINE}"),
    ] = None  # fmt: skip
    max_memory: Annotated[
        int | None,
        option("memory of trainings; more wait", IN_TOTAL, BYTES,
               unset=f"3/4 {MACHINE}"),
    ] = None  # fmt: skip

    # reading uploaded files
    max_examiner_files: Annotated[
        int | None,
        option("files read at a time; more wait", IN_TOTAL,
               unset="cores, as memory allows; at least 2"),
    ] = None  # fmt: skip
    max_examiner_s_per_file: Annotated[
        float,
        option("CPU time of reading it: 60 s and 2 s a MB, at most this",
               PER_FILE, SECONDS),
    ] = 300.0  # fmt: skip
    max_examiner_memory: Annotated[
        int, option("memory of reading it", PER_FILE, BYTES, ge=256 * MIB)
    ] = 4 * GIB
    max_examiner_s_per_client: Annotated[
        float,
        option("CPU time of files that wait or are read",
               PER_CLIENT, SECONDS),
    ] = 7200.0  # fmt: skip
    max_examiner_s: Annotated[
        float,
        option("CPU time of files that wait or are read",
               IN_TOTAL, SECONDS),
    ] = 28800.0  # fmt: skip

    def __post_init__(self) -> None:
        """Check every value.

        Raises
        ------
        ConfigError
            Naming all that are wrong.
        """
        values = (
            (one, getattr(self, one.name)) for one in options_of(Settings).values()
        )
        problems = [
            f"{one.name}: got {str(value)[:80]!r}, {wrong}"
            for one, value in values
            if (wrong := one.problem(value))
        ]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_environment(cls, flags: Mapping[str, str | None] | None = None) -> Self:
        """Settings from the variables FEDRAY_...; flags of ``fedray serve`` go before.

        flags : text by name of setting.

        Raises
        ------
        ConfigError
            Naming every text that is wrong by its flag or variable.
        """
        return cls(**read_texts(cls, flags or {}))

    @property
    def folder(self) -> Path:
        """Folder of all federations."""
        return Path(self.root).expanduser().absolute()
