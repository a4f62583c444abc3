"""fedray edge --dry-run: what would leave this edge, with what is known of it here.

Nothing is sent. The data are read, to say how many samples there are, which is what
leaves of them.
"""

from collections.abc import Iterator

from fedray import data
from fedray.edge.work import PartyOptions
from fedray.errors import format_count

CALLS = {
    "every call": "the token that this edge made, and HTTP's own headers",
    "enrol": "the invitation, a public key, the hash of the token, fedray's version",
    "check-in": "idle, training or sending; the task, the share of it that is done; "
    "SHA-256 of the weights that are here; a random number of this process; version",
    "join": "{samples}; {device}; whether the data are what a run began with; names of "
    "frozen tensors that training moved; with dp_sgd the privacy budget",
    "train": "the weights after training, or their change: as many numbers as the "
    "model has, which tell something of the data; {n_train}; mean training loss; norm "
    "of the change; seconds; learning rate. With dp_sgd: epsilon spent, and no loss",
    "evaluate": "{n_test}; mean loss, accuracy and sums of the run's metrics; none if "
    "the service has test data of its own",
    "failure": "its kind, the error's type, the last line of your own code; a message "
    "only where it holds no data",
    "leave": "nothing else",
}
STAYS = (
    "samples, labels, gradients, paths, host name, whole errors, your code, your key"
)


def describe_departures(options: PartyOptions, urls: list[str]) -> Iterator[str]:
    """Lines of what would leave, for people.

    Raises
    ------
    ConfigError, DataError
        If the data cannot be read.
    """
    n_train, n_test = count_samples(options)
    words = {
        "n_train": format_count(n_train, "training sample"),
        "n_test": format_count(n_test, "test sample"),
        "device": f"device {options.device}",
    }
    words["samples"] = f"{words['n_train']}, {words['n_test']}"
    yield f"would leave, to {' or '.join(urls)} alone; nothing is sent now:"
    for call, text in CALLS.items():
        yield f"  {call:10}  {text.format(**words)}"
    yield f"stays here: {STAYS}"


def count_samples(options: PartyOptions) -> tuple[int, int]:
    """Training and test samples, which weigh updates and scores."""
    handler = data.named(options.data_handler, options.data)
    own = handler, options.data, options.data_args
    load = data.load_as_given if options.is_class else data.load
    samples = load(*own)
    return samples.n_train, samples.n_test
