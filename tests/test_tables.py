"""Tables: csv and parquet files to arrays, codes over all parties, hostile files."""

import gzip
import os
import textwrap

import numpy as np
import pytest

import fedray
from fedray.config import FederationConfig
from fedray.data import Csv, Origin, Parquet, complete_partition, config_problems, load
from fedray.errors import ConfigError, DataError, JoinFailed
from fedray.federation import read_config
from fedray.survey import DataSurvey, differences

pa = pytest.importorskip("pyarrow")
SECRET = "4711"  # a value that no error may show
ABY = "a,b,y\n1,2,0\n3,4,1\n5,6,1\n"


def write(folder, text, name="a.csv"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def read(folder, text, name="a.csv", **options):
    """Inputs and targets of a whole table, as lists."""
    (x, y), (x_test, _) = Csv(write(folder, text, name), test=0, **options).get_data()
    assert len(x_test) == 0
    return x.tolist(), y if y is None else y.tolist()


def write_parquet(folder, name="a.parquet", **columns):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), folder / name)
    return str(folder / name)


def test_all_columns_but_the_target_are_inputs(tmp_path):
    (x, y), _ = Csv(write(tmp_path, ABY), test=0).get_data()
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert (x.tolist(), y.tolist()) == ([[1, 2], [3, 4], [5, 6]], [0, 1, 1])


@pytest.mark.parametrize(
    ("text", "options", "x", "y"),
    [
        (ABY, {"columns": "b"}, [[2], [4], [6]], [0, 1, 1]),
        (ABY, {"columns": ["b", "a"], "target": "y"}, [[2, 1], [4, 3], [6, 5]], None),
        (ABY, {"target": ["a", "y"]}, [[2], [4], [6]], [[1, 0], [3, 1], [5, 1]]),
        (",a,y\n0,7,1\n1,8,0\n", {}, [[7], [8]], [1, 0]),  # the first is pandas' index
        (ABY, {"target": []}, [[1, 2, 0], [3, 4, 1], [5, 6, 1]], None),
        (ABY, {"dtypes": {"y": "float32"}}, None, [0.0, 1.0, 1.0]),
        (ABY, {"dtypes": {"y": "category"}}, None, [0, 1, 1]),
        (ABY.replace("y", "label"), {}, None, [0, 1, 1]),
        (ABY.replace("0\n", "0.5\n"), {}, None, [0.5, 1, 1]),
        (ABY.replace(",", ";"), {"delimiter": ";"}, None, [0, 1, 1]),
        (ABY.replace(",", "\t"), {"delimiter": "\t"}, None, [0, 1, 1]),
        ("1,5;2\n3;4\n", {"names": ["a", "y"], "delimiter": ";", "decimal": ","},
         [[1.5], [3]], [2, 4]),
        ("\ufeff" + ABY, {}, None, [0, 1, 1]),
        (ABY.encode("utf-16"), {}, None, [0, 1, 1]),
        ("\n" + ABY.replace("\n", "\r\n\r\n"), {}, None, [0, 1, 1]),
        ("a,y\ntrue,1\nFalse,0\n", {}, [[1], [0]], [1, 0]),
        ('a,y\n1,"x, ""y""\nz"\n2,b\n', {}, [[1], [2]], [1, 0]),
        ('a,y\n1,5"\n2,"b\nb"\n', {}, None, [0, 1]),  # a quote within a value
        ("a,y\n1,ä\n2,b\n".encode("latin-1"), {"encoding": "latin-1"}, None, [1, 0]),
        ("a,y\n?,1\n2,0\n", {"na_values": "?", "missing": -1}, [[-1], [2]], [1, 0]),
        ("a,y\n,1\n2,0\n4,1\n", {"missing": "mean"}, [[3], [2], [4]], [1, 0, 1]),
        ("a,y\n,1\n2,0\n4,\n", {"missing": "drop"}, [[2]], [0]),
        ("a,y\nu,1\nv,0\n", {"dtypes": {"a": "category"}}, [[0], [1]], [1, 0]),
        ("a,b,y\n7,u,1\n8,v,0\n", {"dtypes": {"b": "category"}, "one_hot": True},
         [[7, 1, 0], [8, 0, 1]], [1, 0]),
        ("a,b,y\nu,7,1\n,8,0\n", {"dtypes": {"a": "category"}, "missing": 0},
         [[7, 1], [8, 0]], [1, 0]),  # what is missing is a category of its own
    ],
)  # fmt: skip
def test_options_of_a_csv(tmp_path, text, options, x, y):
    got_x, got_y = read(tmp_path, text, **options)
    assert x is None or got_x == x
    assert y is None or got_y == y


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "an empty file"),
        ("a,b,y\n", {}, "columns without a row"),
        ("a,b,y\n1,2\n", {}, "2 values in row 2; needed 3"),
        ("a,b,y\n1,2,0\n1,2,0,4711\n", {}, "4 values in row 3; needed 3"),
        ("a,a,y\n1,2,0\n", {}, "more than one column 'a'"),
        ("a,b,y\n1,2,0\n4711x,2,0\n", {}, "column 'a' with something else than a num"),
        ("a,b,y\n1,2,0\n4711x,2,0\n", {}, "in row 3; needed numbers; dtypes: {a: cat"),
        ("a,b,y\n1,2,0\n1,,0\n", {}, "column 'b' with no value in row 3"),
        ("a,b,y\n1,2,0\n1,nan,0\n", {"missing": "error"}, "'b' with no value in row 3"),
        ("a,b,y\n1,2,0\n1,2,\n", {"missing": 0}, "column 'y' with no value in row 3"),
        ("a,b,y\n1,-inf,0\n", {}, "column 'b' with infinity in row 2"),
        ("a,b,y\n1,4711e300,0\n", {}, "too large for float32 in row 2; needed dtypes"),
        ("a,b,y\n1,47.11,0\n", {"dtypes": "int64"}, "'b' with no whole number in row"),
        ("a,b,y\n1,2,47.11\n", {"dtypes": {"y": "int64"}}, "'y' with no class number"),
        ("a,y\n1,99999999999999999\n", {}, "'y' with no class number in row 2"),
        ("a,b,y\n1,2020-01-01,0\n", {}, "column 'b' with something else than a number"),
        ("a,b,y\n1,2,u\n1,2,4711\n", {}, "'y' with a number in row 3; needed texts"),
        ("a,y\n1,b\n2,ä\n".encode("latin-1"), {}, "text that is not utf-8; needed"),
        (ABY, {"encoding": "klingon"}, "an encoding 'klingon' that Python does not"),
        (ABY, {"target": "z"}, "no column 'z'; needed one of ['a', 'b', 'y']"),
        (ABY, {"columns": ["a", "bb"]}, "no column 'bb'; needed one of ['a'"),
        (ABY, {"columns": ["a", "y"]}, "column 'y' as an input and as the target"),
        (ABY, {"dtypes": {"c": "float32"}}, "dtypes of a column 'c' that is not read"),
        ("a,b\n1,2\n", {}, "no column target, label or y; needed data_args: {target"),
        ("a;b;y\n1;2;0\n", {}, "data_args: {delimiter: ';'}"),
        (b"PAR1\0\0" * 99, {}, "a Parquet table; needed a CSV, which is text"),
        (os.urandom(999) + b"\0", {}, "needed a CSV"),
        ("y\n1\n", {}, "no column beside the target"),
        ('a,y\n1,"u\n2,v\n', {}, "a quote in column 'y' that is not closed"),
        ("a,y\n,\n1,\n", {"missing": "drop"}, "a value missing in each row"),
    ],
)  # fmt: skip
def test_what_a_csv_cannot_be_is_told_by_column_and_row(tmp_path, text, options, words):
    with pytest.raises(DataError) as error:
        read(tmp_path, text, **options)
    assert words in str(error.value)
    assert f"{tmp_path}/a.csv" in str(error.value)
    assert SECRET not in str(error.value)


def test_a_row_is_counted_over_blocks_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fedray.data.table_files.BLOCK_BYTES", 64)
    rows = ["1,2"] * 50
    text = "\n".join(["a,y", *rows, "x,2"])
    with pytest.raises(DataError, match="in row 52"):
        read(tmp_path, text)
    with pytest.raises(DataError, match="3 values in row 52"):
        read(tmp_path, text.replace("x,2", "1,2,3"))
    with pytest.raises(DataError, match="no value in row 52"):
        read(tmp_path, text.replace("x,2", ",2"))
    assert read(tmp_path, text.replace("x,2", "7,2"))[0][-1] == [7]
    # what the first block took for whole numbers is none
    y = read(tmp_path, text.replace("x,2", "7,2.5"))[1]
    assert y == [2.0] * 50 + [2.5]


def test_ten_thousand_columns_are_read(tmp_path):
    header = ",".join(f"c{i}" for i in range(10_000))
    row = ",".join("1.5" for _ in range(10_000))
    (x, _), _ = Csv(write(tmp_path, f"{header},y\n{row},0\n"), test=0).get_data()
    assert x.shape == (1, 10_000)


def test_files_of_a_folder_or_pattern_are_one_table_sorted_by_name(tmp_path):
    inner = tmp_path / "tables"
    (inner / "more").mkdir(parents=True)
    write(inner, "a,y\n2,0\n", "2.csv")
    write(inner, "y,a\n1,1\n", "1.csv")  # in another order
    write(inner, gzip.compress(b"a,y\n3,1\n"), "more/3.csv.gz")
    write(inner, "nothing", "readme.txt")
    write(inner, "nothing", ".hidden.csv")
    for path, x in ((inner, [1, 2, 3]), (inner / "?.csv", [1, 2])):
        (got, _), _ = Csv(str(path), test=0).get_data()
        assert got[:, 0].tolist() == x
    write(inner, "a,b\n2,0\n", "4.csv")
    with pytest.raises(DataError, match=r"4\.csv: got no column 'y'"):
        Csv(str(inner), test=0).get_data()
    for path in (tmp_path / "*.zip", tmp_path / "none.csv"):
        with pytest.raises(DataError, match="no file there"):
            Csv(str(path), test=0).get_data()


def test_links_out_of_the_data_root_and_pipes_are_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    outside = write(tmp_path, ABY, "outside.csv")
    (root / "link.csv").symlink_to(outside)
    assert Csv(str(root), test=0).get_data()  # no root, no bound
    with pytest.raises(DataError, match="a link that leads out of the data root"):
        Csv(str(root), origin=Origin(root=str(root))).get_data()
    (root / "link.csv").unlink()
    os.mkfifo(root / "pipe.csv")
    with pytest.raises(DataError, match="a device, pipe or socket"):
        Csv(str(root)).get_data()


def test_a_csv_that_is_cut_or_inflates_too_much_is_refused(tmp_path):
    packed = gzip.compress(b"a,y\n" + b"1,2\n" * 10_000)
    with pytest.raises(DataError, match="cut short"):
        Csv(write(tmp_path, packed[:-20], "a.csv.gz")).get_data()
    bomb = gzip.compress(b"a,y\n" + b"1,2\n" * (18 << 20))
    with pytest.raises(DataError, match="inflates past that"):
        Csv(write(tmp_path, bomb, "b.csv.gz")).get_data()


def test_columns_of_parquet_have_the_types_of_the_file(tmp_path):
    columns = {
        "a": [1, 2, 3],
        "b": pa.array([1.5, 2.5, 3.5], pa.float32()),
        "c": pa.array(["u", "v", "u"]).dictionary_encode(),
        "day": pa.array([1, 2, 1], pa.date32()),
        "y": [True, False, True],
    }
    path = write_parquet(tmp_path, **columns)
    options = {"dtypes": {"c": "category", "day": "category"}}
    (x, y), _ = Parquet(path, test=0, **options).get_data()
    assert x.tolist() == [[1, 1.5, 0, 0], [2, 2.5, 1, 1], [3, 3.5, 0, 0]]
    assert (y.dtype, y.tolist()) == (np.int64, [1, 0, 1])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["u", "v"], "column 'a' with text from row 1 on; needed numbers; dtypes"),
        (pa.array([1, 2], pa.date32()), "column 'a' with dates from row 1 on"),
        ([[1.0], [2.0]], "column 'a' with lists or bytes from row 1 on"),
        ([1, None], "column 'a' with no value in row 2"),
        ([1, float("nan")], "column 'a' with no value in row 2"),
        ([1, float("inf")], "column 'a' with infinity in row 2"),
    ],
)
def test_what_a_parquet_column_cannot_be(tmp_path, column, words):
    path = write_parquet(tmp_path, a=column, y=[0, 1])
    with pytest.raises(DataError, match=words):
        Parquet(path).get_data()


def test_a_truncated_parquet_is_refused_at_every_length(tmp_path):
    whole = open(write_parquet(tmp_path, a=[1, 2], y=[0, 1]), "rb").read()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        path = write(tmp_path, whole[:length], "cut.parquet")
        with pytest.raises(DataError, match="a whole Parquet file"):
            Parquet(path).get_data()
    with pytest.raises(DataError, match="a text file; needed a whole Parquet"):
        Parquet(write(tmp_path, ABY, "text.parquet")).get_data()


def test_tests_are_a_share_by_seed_and_party_or_another_file(tmp_path):
    rows = "".join(f"{i},{i % 2}\n" for i in range(50))
    path = write(tmp_path, f"a,y\n{rows}")

    def tests(seed, party, **options):
        origin = Origin(party=party, seed=seed)
        (x, y), (x_test, y_test) = Csv(path, origin=origin, **options).get_data()
        assert sorted([*x[:, 0], *x_test[:, 0]]) == list(range(50))
        assert (x[:, 0] % 2).tolist() == y.tolist()  # rows stay whole
        assert (x_test[:, 0] % 2).tolist() == y_test.tolist()
        return x_test[:, 0].tolist()

    assert len(tests(0, "a")) == 10
    assert tests(0, "a") == tests(0, "a") != tests(1, "a") != tests(0, "b")
    assert len(tests(0, "a", test=0.5)) == 25
    other = write(tmp_path, "y,a\n1,7\n", "tests.csv")
    (x, _), (x_test, y_test) = Csv(path, test=other).get_data()
    assert (len(x), x_test.tolist(), y_test.tolist()) == (50, [[7]], [1])
    (x, _), (x_test, _) = Csv(path, origin=Origin(is_test=True)).get_data()
    assert len(x_test) == 50  # a table of tests is one as a whole


def surveyed(folder, texts, **options):
    """Handlers of several parties and their merged codes."""
    handlers = [
        Csv(write(folder, text, f"{i}.csv"), test=0, **options)
        for i, text in enumerate(texts)
    ]
    return handlers, [handler.get_survey() for handler in handlers]


def test_codes_come_from_all_parties(tmp_path):
    texts = "a,b,y\n1,u,cat\n3,v,dog\n", "a,b,y\n5,w,ant\n"
    handlers, surveys = surveyed(tmp_path, texts, dtypes={"b": "category"})
    codes = DataSurvey.merge(surveys).codes()
    assert codes.labels == ("ant", "cat", "dog")
    assert codes.categories == {"b": ("u", "v", "w")}
    for handler, x, y in zip(
        handlers, ([[1, 0], [3, 1]], [[5, 2]]), ([1, 2], [0]), strict=True
    ):
        handler.use_codes(codes)
        (got, labels), _ = handler.get_data()
        assert (got.tolist(), labels.tolist()) == (x, y)
    moments = DataSurvey.merge(surveys).moments[""].total()
    assert (moments.names, moments.mean.tolist()) == (("a",), [[3.0]])


def test_columns_in_another_order_are_one_input(tmp_path):
    handlers, surveys = surveyed(tmp_path, ["b,a,y\n1,2,0\n", "a,b,y\n4,3,1\n"])
    codes = DataSurvey.merge(surveys).codes(normalize=True)
    rows = []
    for handler in handlers:
        handler.use_codes(codes)
        rows += handler.get_data()[0][0].tolist()
    assert rows == [[2, 1], [4, 3]]  # columns a and b
    assert codes.apply(np.array(rows)).tolist() == [[-1, -1], [1, 1]]


def test_columns_that_differ_between_parties_are_told(tmp_path):
    texts = "a,b,y\n1,2,0\n", "a,b,y\n1,2,1\n", "a,c,y\n1,2,x\n"
    _, surveys = surveyed(tmp_path, texts)
    found = differences(dict(zip("pqr", surveys, strict=True)))
    assert list(found) == ["r"]
    for words in ("lacks column 'b'", "column 'c'", "at party p"):
        assert words in found["r"]


def config(folder, **settings):
    (folder / "net.py").write_text(
        textwrap.dedent("""
            from torch import nn

            def net():
                return nn.Linear(2, 3)
        """)
    )
    common = {"data_handler": "csv", "architecture": f"{folder}/net.py:net"}
    return common | {"party_dir": f"{folder}/party"} | settings


def by_hospital(folder, text, **settings):
    partition = {"source": write(folder, text), "by": "site", **settings}
    return config(folder, partition=partition)


SITES = "a,b,y,site\n" + "".join(f"{i},2,{i % 3},{'nsw'[i % 3]}\n" for i in range(60))


def test_a_partition_by_a_column_has_a_party_for_each_value(tmp_path):
    found = read_config(by_hospital(tmp_path, SITES))
    assert (found.num_parties, found.partition.values) == (3, ("n", "s", "w"))
    assert [found.party_name(i) for i in range(3)] == ["n", "s", "w"]
    assert found.party_place("s") == 1
    again = read_config(found.to_dict())  # as a resumed run has it
    assert again.to_dict() == found.to_dict()
    numbers = by_hospital(tmp_path, SITES.replace(",n", ",10").replace(",s", ",9"))
    numbers["partition"]["by"] = "y"
    assert read_config(numbers).partition.values == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_parties": 2}, "num_parties is 2, but site has 3 values, a party each"),
        ({"data_handler": "mnist_pytorch"}, "by: site goes with data_handler ['csv'"),
        ({"attack": {"kind": "sign_flip", "parties": ["x"]}}, "there is no party 'x'"),
    ],
)
def test_a_partition_by_a_column_that_cannot_be(tmp_path, changes, words):
    with pytest.raises(ConfigError) as error:
        read_config(by_hospital(tmp_path, SITES) | changes)
    assert words in str(error.value)


def test_a_party_without_a_name_or_samples_is_told(tmp_path):
    missing = SITES.replace("59,2,2,w", "59,2,2,")
    with pytest.raises(DataError, match="column 'site' with no value in row 61"):
        read_config(by_hospital(tmp_path, missing))
    spec = FederationConfig(**by_hospital(tmp_path, SITES)).partition
    assert complete_partition(FederationConfig(partition=None)).partition is None
    samples = load("csv", spec.source, {}, Origin(by="site"))
    assert sorted(set(samples.column[0])) == ["n", "s", "w"]
    assert [len(part) for part in samples.column] == [48, 12]  # 4 of each site's 20


@pytest.mark.usefixtures("cluster")
def test_labels_that_one_party_alone_has_are_classes_for_all(tmp_path):
    rng = np.random.default_rng(0)
    parties = []
    for name, labels in (("north", ["ant", "bee"]), ("south", ["bee", "cat"])):
        rows = [(*rng.normal(size=2), labels[i % 2]) for i in range(20)]
        lines = "".join(f"{a},{b},{label}\n" for a, b, label in rows)
        data = write(tmp_path, f"a,b,label\n{lines}", f"{name}.csv")
        parties.append({"name": name, "data": data})
    result = fedray.run(config(tmp_path, parties=parties), run_dir=tmp_path / "run")
    report = result.history[-1]
    assert [party.n_samples for party in report.parties] == [16, 16]
    assert report.evaluated == 8
    write(tmp_path, "a,c,label\n1,2,bee\n", "south.csv")
    with pytest.raises(JoinFailed) as error:
        fedray.run(config(tmp_path, parties=parties), run_dir=tmp_path / "other")
    for words in ("north", "south", "'b'", "'c'"):
        assert words in str(error.value)


@pytest.mark.usefixtures("cluster")
def test_parties_of_a_column_train_and_test_on_their_own_rows(tmp_path):
    result = fedray.run(by_hospital(tmp_path, SITES), run_dir=tmp_path / "run")
    parties = result.history[-1].parties
    assert [(party.name, party.n_samples) for party in parties] == [
        ("n", 16), ("s", 16), ("w", 16),
    ]  # fmt: skip
    assert result.history[-1].evaluated == 12


def test_mistakes_in_data_args_are_told_before_anything_is_read():
    def mistakes(**settings):
        return config_problems(FederationConfig(**settings))

    assert mistakes(data_handler="csv", data_args={"colums": ["a"], "test": 2}) == [
        "data_args of csv: unknown option 'colums'; did you mean 'columns'? choose "
        "from ['columns', 'decimal', 'delimiter', 'dtypes', 'encoding', 'missing', "
        "'na_values', 'names', 'one_hot', 'target', 'test']",
        "data_args of csv: test: needed a share of the samples from 0 to below 1, or "
        "the path of a file, got 2",
    ]
    assert mistakes(data_args={"size": 3}) == [
        "data_handler mnist_pytorch takes no data_args 'size'"
    ]
    parties = [{"name": "p", "data": "p.csv", "data_args": {"missing": "guess"}}]
    assert mistakes(data_handler="csv", parties=parties) == [
        "party 'p': data_args of csv: missing: needed error, drop, mean or a number, "
        "got 'guess'"
    ]
