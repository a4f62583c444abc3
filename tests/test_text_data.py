"""Text data handlers: what they read, what they refuse in bounded time and memory."""

import bz2
import gzip
import io
import json
import os
import re
import tarfile
import zipfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest

from fedray import data
from fedray.errors import DataError

POST = b"From: someone@example.org\nSubject: the weather\n\nWords about rain and sun.\n"
RAIN = ["the", "weather", "words", "about", "rain", "and", "sun"]
POSTS = {"news/alt.atheism/49960": POST, "news/sci.space/60154": b"Rockets only."}
GENSIM = Path(__import__("importlib.util").util.find_spec("gensim").origin).parent
SHIPPED = GENSIM / "test" / "test_data"


def documents(path, handler="20_newsgroup"):
    return list(data.load(handler, str(path)).x_train)


def folder(tmp_path, posts=POSTS):
    for name, post in posts.items():
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(post)
    return tmp_path / "source"


def zipped(tmp_path, members):
    path = tmp_path / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, post in members:
            archive.writestr(name, post)
    return path


def tarred(tmp_path, members, mode="w:gz"):
    path = tmp_path / "source.tar"
    with tarfile.open(path, mode) as archive:
        for member, post in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(post)
            archive.addfile(member, io.BytesIO(post))
    return path


def lined(tmp_path, *lines):
    path = tmp_path / "source.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.bz2"])
def test_folder_zip_and_tar_give_the_same_tags_words_and_groups(tmp_path, kind):
    if kind == "folder":
        path = folder(tmp_path)
    elif kind == "zip":
        path = zipped(tmp_path, POSTS.items())
    else:
        mode = "w:" + kind.partition(".")[2]
        path = tarred(tmp_path, POSTS.items(), mode)
    first, second = documents(path)
    assert first == ("alt.atheism/49960", RAIN, "alt.atheism")
    assert second == ("sci.space/60154", ["rockets", "only"], "sci.space")


def test_a_text_that_only_resembles_a_message_is_read_whole(tmp_path):
    path = zipped(tmp_path, [("a/1", b"Note: read this\n\nBody"), ("a/2", b"Note")])
    assert [one.words for one in documents(path)] == [
        ["note", "read", "this", "body"],
        ["note"],
    ]


def test_tags_do_not_depend_on_the_order_in_an_archive(tmp_path):
    there = documents(tarred(tmp_path, POSTS.items()))
    back = documents(tarred(tmp_path, reversed(POSTS.items())))
    assert sorted(there) == sorted(back)


def test_documents_of_json_lines_have_their_own_tag_or_a_hash_of_their_text(tmp_path):
    path = lined(
        tmp_path,
        b'{"text": "Two words", "tag": "one", "group": "a"}',
        b"",
        b'{"text": "No tag here", "group": "b"}',
    )
    first, second = documents(path)
    assert first == ("one", ["two", "words"], "a")
    # the first 16 digits of sha256 of the text, by another tool (sha256sum)
    assert second == ("6968be14c1545741", ["no", "tag", "here"], "b")


def test_json_lines_without_a_suffix_are_recognised_by_the_first_brace(tmp_path):
    line = b'{"title": "Rain", "text": "It falls", "tag": "Rain"}'
    for name, content in (("upload", b" \n" + line), ("packed", gzip.compress(line))):
        path = tmp_path / name
        path.write_bytes(content)
        for handler in ("wikipedia", "20_newsgroup"):
            assert documents(path, handler)[0][:2] == ("Rain", ["it", "falls"])


def test_the_tokenizer_gives_the_words_of_gensims():
    from gensim.utils import simple_preprocess

    for name in ("lee_background.cor", "lee.cor"):
        text = (SHIPPED / name).read_bytes().decode("latin-1")
        assert data.tokenize(text) == simple_preprocess(text)
    odd = "Über-größe _under 3rd ÇA naïve ΑΒΓ a ab İstanbul ĳ sixteenletterword"
    assert data.tokenize(odd) == simple_preprocess(odd)


def newsgroups_of_gensim() -> dict[str, bytes]:
    """Posts of the shipped pickle, read by its opcodes: nothing in it is run."""
    import pickletools
    import zlib

    raw = zlib.decompress((SHIPPED / "mini_newsgroup").read_bytes())
    texts = [(op.name, arg) for op, arg, _ in pickletools.genops(raw) if arg]
    posts = [arg for name, arg in texts if name == "UNICODE"]
    paths = max((arg for name, arg in texts if name == "STRING"), key=len)
    width = len(paths) // len(posts)  # an array of names, padded with zeros
    names = [paths[i : i + width].rstrip("\0") for i in range(0, len(paths), width)]
    return {n: post.encode() for n, post in zip(names, posts, strict=True)}


def test_two_hundred_real_posts_become_documents_in_two_groups(tmp_path):
    posts = newsgroups_of_gensim()
    files = [(name.partition("mini/")[2], post) for name, post in posts.items()]
    samples = data.load("20_newsgroup", str(zipped(tmp_path, files)))
    assert samples.n_train == 200
    groups = [document.group for document in samples.x_train]
    assert [groups.count(g) for g in ("alt.atheism", "sci.space")] == [100, 100]
    assert [int((samples.y_train == y).sum()) for y in (0, 1)] == [100, 100]
    assert "alt.atheism/51251" in {document.tag for document in samples.x_train}
    words = {word for document in samples.x_train for word in document.words}
    assert {"shuttle", "orbit", "god"} <= words
    assert "cantaloupe" not in words  # a machine in every post's Path


def test_a_real_dump_gives_the_articles_that_gensim_counts():
    from gensim.corpora.wikicorpus import WikiCorpus

    file = next(SHIPPED.glob("enwiki-latest-pages-articles1*shortened.bz2"))
    articles = documents(file, "wikipedia")
    wiki = WikiCorpus(str(file), processes=1, dictionary={}, metadata=True)
    expected = {title: words for words, (_, title) in wiki.get_texts()}
    assert len(articles) == 106
    assert {one.tag: one.words for one in articles} == expected


def test_articles_of_json_lines_are_tagged_by_title(tmp_path):
    path = lined(tmp_path, b'{"title": "Rain", "text": "It falls down"}')
    assert documents(path, "wikipedia") == [("Rain", ["it", "falls", "down"], None)]


CUSTOM = """
from collections import namedtuple
Tagged = namedtuple("TaggedDocument", "words tags")

class Mine:
    def __init__(self, path):
        self.path = path

    def get_data(self):
        {body}
"""


def custom(tmp_path, body):
    (tmp_path / "mine.py").write_text(CUSTOM.format(body=body))
    return data.named(f"{tmp_path / 'mine.py'}:Mine")


@pytest.mark.parametrize(
    "body",
    [
        "yield 'x', 'Some words'",
        "return [('x', ['some', 'words'])]",
        "return [Tagged(['some', 'words'], ['x'])]",
        "yield Tagged('Some words', ['x'])",
    ],
)
def test_a_custom_handler_may_return_documents_in_every_documented_form(tmp_path, body):
    samples = data.load(custom(tmp_path, body), "p")
    assert list(samples.x_train) == [("x", ["some", "words"], None)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("yield 'x', 3", "document 1 with words of another kind"),
        ("yield 3, 'secret'", "document 1 with another tag"),
        ("yield 'x' * 400, 'secret'", "document 1 with another tag"),
        ("yield 'x', ['secret', 'two words']", "with a word of several parts"),
        ("yield 'x', ['secret', 'a\\n']", "with a word of several parts"),
        ("yield 'x', ['a' * 101]", "with a word of another kind"),
        ("yield Tagged(['secret'], ['x', 'y'])", "with not just one tag"),
        ("yield 'secret'", "document 1 of type str"),
        ("yield 'x', 'secret'\n        yield 'x', 'secret'", "document 2 with the tag"),
        ("yield 'x', ''", "no documents"),
        ("yield from ()", "no documents"),
    ],
)
def test_invalid_documents_are_refused_without_being_quoted(tmp_path, body, message):
    with pytest.raises(DataError, match=message) as caught:
        data.load(custom(tmp_path, body), "p")
    assert "secret" not in str(caught.value)


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def device(name):
    member = tarfile.TarInfo(name)
    member.type = tarfile.CHRTYPE
    return member


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a/1", POST)], "a member named '../a/1'"),
        ([("a/../../1", POST)], "a member named"),
        ([("/a/1", POST)], "a member named '/a/1'"),
        ([("a\\b/1", POST)], "a member named"),
        ([("a/" * 500_000, POST)], "a member named 'a/a/"),
        ([("a/1", POST), ("a/1", POST)], "two members of one name"),
        ([("b/1", POST), ("c/a/1", POST), ("d/a/1", POST)], "the tag of another one"),
        ([("a/1", bytes((16 << 20) + 1))], "a larger one, 'a/1'"),
        ([], "cannot be read|a tar without a file"),
    ],
)
def test_an_archive_of_hostile_members_is_refused(tmp_path, members, message):
    for make in (tarred, zipped) if len(members[:1][0][0] if members else "") < 60_000 \
            else (tarred,):  # a zip's names are shorter  # fmt: skip
        with pytest.raises(DataError, match=f"{message}|inflates|no documents"):
            documents(make(tmp_path, members))
    assert sorted(path.name for path in tmp_path.iterdir())[-1].startswith("source")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"one post, and no folder of posts\n", "it is a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "it is a PNG picture"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_is_no_archive_is_told_as_what_it_is(tmp_path, content, kind):
    path = tmp_path / "posts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"cannot be read .*: {kind}; needed a whole"):
        documents(path)


@pytest.mark.parametrize("member", [link("a/1"), device("a/1")])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, member):
    with pytest.raises(DataError, match="a link or device 'a/1'"):
        documents(tarred(tmp_path, [(member, b"")]))


def test_a_link_in_a_zip_is_refused(tmp_path):
    member = zipfile.ZipInfo("a/1")
    member.external_attr = 0o120777 << 16
    with pytest.raises(DataError, match="a link or device"):
        documents(zipped(tmp_path, [(member, b"/etc/passwd")]))


def test_a_name_with_a_nul_is_refused(tmp_path):
    path = zipped(tmp_path, [("a/1234", POST)])
    path.write_bytes(path.read_bytes().replace(b"a/1234", b"a/1\0.x"))
    with pytest.raises(DataError, match="a member named"):
        documents(path)


def test_links_and_pipes_in_a_folder_are_left_out(tmp_path):
    path = folder(tmp_path)
    os.symlink("/etc/passwd", path / "news/alt.atheism/passwd")
    os.symlink("/etc", path / "news/etc")
    os.mkfifo(path / "news/alt.atheism/pipe")
    assert len(documents(path)) == 2
    with pytest.raises(DataError, match="nothing there"):
        documents(path / "news/alt.atheism/pipe")


def limited(script: str, path: Path) -> str:
    """Read a source in a process with 400 MB; its last line."""
    import subprocess
    import sys

    code = (
        "import resource, sys; from fedray import data; from fedray.errors import *\n"
        "import numpy\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)\n"
        f"try:\n    data.load('{script}', sys.argv[1]); print('read')\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()[-1]


def test_bombs_are_refused_in_200_megabytes(tmp_path):
    bomb = zipped(tmp_path, [("a/1", bytes(100 << 20))])
    assert "inflates past that" in limited("20_newsgroup", bomb)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    bomb = tmp_path / "pax.tar.gz"
    with gzip.open(bomb, "wb", 1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(40):
            file.write(bytes(1 << 20))
    assert "a member past the bounds" in limited("20_newsgroup", bomb)
    line = lined(tmp_path, b'{"text": "' + b"a" * (17 << 20) + b'"}')
    assert "a longer line" in limited("20_newsgroup", line)


@pytest.mark.parametrize("n", [0, 1, 100, 550])
def test_truncated_archives_are_refused(tmp_path, n):
    for path in (zipped(tmp_path, POSTS.items()), tarred(tmp_path, POSTS.items(), "w")):
        whole = path.read_bytes()
        path.write_bytes(whole[: min(n, len(whole) - 1)])
        with pytest.raises(DataError):
            documents(path)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[1, 2]",
        b'{"text": 3}',
        b'{"tag": "x"}',
        b"\xff\xfe",
        b'{"text": "aa bb", "tag": 1}',
        b'{"text": "aa bb", "group": ["x"]}',
        b"9" * 100_000,
    ],
)
def test_an_error_about_an_invalid_line_gives_its_number(tmp_path, line):
    path = lined(tmp_path, b'{"text": "good one", "tag": "t"}', line)
    with pytest.raises(DataError, match=r"(line|document) 2"):
        documents(path)


def dump(tmp_path, text: str, head: str = "") -> Path:
    name = "http://www.mediawiki.org/xml/export-0.10/"
    page = f"<title>A</title><ns>0</ns><id>1</id><revision><text>{text}</text>"
    whole = f"<mediawiki xmlns='{name}'><page>{page}</revision></page></mediawiki>"
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress((head + whole).encode()))
    return path


def test_a_dump_that_takes_forever_to_clean_is_refused_in_bounded_time(tmp_path):
    assert documents(dump(tmp_path, "word " * 60), "wikipedia")[0].tag == "A"
    with pytest.raises(DataError, match="takes too long to clean"):
        documents(dump(tmp_path, "&lt;" * 500_000), "wikipedia")


def test_a_file_that_is_no_dump_or_a_bomb_is_refused(tmp_path):
    entities = "".join(
        f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol " * 100}">'
        for i in range(10)
    )
    exploding = dump(tmp_path, "&e9;", f"<!DOCTYPE x [{entities}]>")
    noise = tmp_path / "noise.xml.bz2"
    noise.write_bytes(np.random.default_rng(0).bytes(10_000))
    blank = tmp_path / "blank.xml.bz2"
    blank.write_bytes(bz2.compress(b"<mediawiki>" + b" " * (100 << 20)))
    for path in (exploding, noise, blank):
        with pytest.raises(DataError, match="that gensim cannot read"):
            documents(path, "wikipedia")


def test_partitions_by_label_use_groups_and_need_them(tmp_path):
    import numpy as np

    from fedray.config import PartitionSpec

    lines = [
        json.dumps({"text": f"word{i} more", "tag": str(i), "group": "ab"[i % 2]})
        for i in range(20)
    ]
    samples = data.load("20_newsgroup", str(lined(tmp_path, *map(str.encode, lines))))
    shards = PartitionSpec("s", scheme="shards", shards_per_party=1)
    share, places, _ = data.partition_samples(samples, range(2), 2, shards, 0)
    groups = [{share.x_train[i].group for i in place} for place in places]
    assert sorted(map(sorted, groups)) == [["a"], ["b"]]
    assert share.n_test == 0
    bare = [json.dumps({"text": "two words", "tag": str(i)}) for i in range(4)]
    samples = data.load("20_newsgroup", str(lined(tmp_path, *map(str.encode, bare))))
    assert np.isnan(samples.y_train).all()
    with pytest.raises(DataError, match="targets that are not labels"):
        data.partition_samples(samples, range(2), 2, shards, 0)


def test_real_text_costs_no_party(tmp_path):
    body = (
        "yield 'a\\u202eb\\n', ['می\\u200cخواهم', 'a\\u202fb']\n"
        "        yield 'half \\ud800', 'whole text'"
    )
    first, second = data.load(custom(tmp_path, body), "p").x_train
    assert first[:2] == ("a\u202eb\n", ["می\u200cخواهم", "a\u202fb"])
    assert second[:2] == (r"half \ud800", ["whole", "text"])


def test_two_equal_texts_without_tags_are_two_documents(tmp_path):
    line = b'{"text": "Same words"}'
    first, second, third = documents(lined(tmp_path, line, line, line))
    assert [first.tag, second.tag, third.tag] == [
        first.tag, f"{first.tag}-2", f"{first.tag}-3"
    ]  # fmt: skip


@pytest.mark.parametrize("make", [folder, tarred])
def test_file_names_of_any_script_are_tags(tmp_path, make):
    names = "g/Bildschirm\u202f9.txt", "g/می\u200cخواهم", "g/gr\udcf6\udcdfe"
    posts = dict.fromkeys(names, b"Some words")
    tags = {one.tag for one in documents(make(tmp_path, posts if make is folder
                                              else posts.items()))}  # fmt: skip
    assert tags == {*names[:2], "g/größe"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    post = (mark + POST.decode()).encode(encoding)
    (document,) = documents(folder(tmp_path, {"a/1": post}))
    assert document.words == RAIN
    text = mark + '{"text": "größe der wörter"}\n{"text": "noch eine"}\n'
    path = tmp_path / "upload"
    path.write_bytes(text.encode(encoding))
    words = [document.words for document in documents(path)]
    assert words == [["größe", "der", "wörter"], ["noch", "eine"]]


@pytest.mark.parametrize("content", ["no mark".encode("utf-16-le"), bytes(range(256))])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    posts = {"a/1": POST, "a/2": content}
    with pytest.raises(DataError, match=r"'a/2', which is no text, or UTF-16"):
        documents(folder(tmp_path, posts))


def test_a_line_in_latin_1_is_named(tmp_path):
    path = lined(
        tmp_path, b'{"text": "good one"}', '{"text": "größe"}'.encode("latin-1")
    )
    with pytest.raises(DataError, match=r"line 2 that is not UTF-8 .*in UTF-8"):
        documents(path)


HEAD = "From: a@b.org\nSubject: the weather\nMIME-Version: 1.0\n"
SENTENCE = "Wörter über Regen"
IN_BASE64 = b64encode(SENTENCE.encode()).decode()
MIXED = """Content-Type: multipart/mixed; boundary=x

noise for old readers
--x
Content-Type: image/png
Content-Transfer-Encoding: base64

iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB
--x
Content-Type: text/plain; name=notes.txt
Content-Disposition: attachment

attached words
--x
Content-Type: multipart/alternative; boundary=y

--y
Content-Type: text/html

<p>markup</p>
--y
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: base64

{body}
--y--
--x--
"""
MAILS = {
    "base64": "Content-Type: text/plain; charset=utf-8\n"
    f"Content-Transfer-Encoding: base64\n\n{IN_BASE64}\n",
    "quoted-printable": "Content-Type: text/plain; charset=utf-8\n"
    "Content-Transfer-Encoding: quoted-printable\n\nW=C3=B6rter =C3=BCber Reg=\nen\n",
    "a charset": "Content-Type: text/plain; charset=iso-8859-15\n"
    "Content-Transfer-Encoding: quoted-printable\n\nW=F6rter =FCber Regen\n",
    "an unknown charset": f"Content-Type: text/plain; charset=x\n\n{SENTENCE}\n",
    "parts": MIXED.replace("{body}", IN_BASE64),
    "html alone": "Content-Type: text/html; charset=utf-8\n\n<style>p {colour: red}"
    "</style><script>no()</script><P class=x>W&ouml;rter</P> über <b>Regen\n",
}


@pytest.mark.parametrize("kind", MAILS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_mails_are_read_as_mails(tmp_path, kind, end):
    for start in ("", "From a@b.org Mon Jan  1 00:00:00 2001\n"):
        mail = (start + HEAD + MAILS[kind]).replace("\n", end)
        (document,) = documents(folder(tmp_path, {"a/1": mail.encode()}))
        assert document.words == ["the", "weather", "wörter", "über", "regen"]


def test_a_charset_of_eight_bits_is_decoded(tmp_path):
    mail = HEAD + "Content-Type: text/plain; charset=koi8-r\n\nПогода\n"
    (document,) = documents(folder(tmp_path, {"a/1": mail.encode("koi8-r")}))
    assert document.words == ["the", "weather", "погода"]


def test_an_encoded_subject_is_decoded(tmp_path):
    head = (
        "From: a@b\nSubject: =?utf-8?b?0J/QvtCz0L7QtNCw?=\n =?utf-8?q?_W=C3=B6rter?=\n"
    )
    (document,) = documents(folder(tmp_path, {"a/1": f"{head}\nnow\n".encode()}))
    assert document.words == ["погода", "wörter", "now"]


def test_a_mail_without_text_has_its_subject(tmp_path):
    picture = (
        "Content-Type: image/png\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo\n"
    )
    (document,) = documents(folder(tmp_path, {"a/1": (HEAD + picture).encode()}))
    assert document.words == ["the", "weather"]


def test_a_mail_nested_without_end_is_named(tmp_path):
    nested = "".join(f"Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n"
                     for i in range(1500))  # fmt: skip
    with pytest.raises(DataError, match="'a/1', a mail of parts within parts"):
        documents(folder(tmp_path, {"a/1": (HEAD + nested).encode()}))


def test_plain_posts_give_the_words_that_they_always_gave(tmp_path):
    """By the reader before mails were read: subject, then all after the header."""
    posts = newsgroups_of_gensim()
    odd = (
        "From: a@b\nSubject: one\n two\nContent-Type: text/plain; charset=us-ascii\n\n"
    )
    posts["mini/a/odd"] = odd.encode() + "grün =20 ".encode("latin-1")
    posts["mini/a/pgp"] = b"From: a@b\nContent-Type: application/pgp\n\nsigned words"
    files = [(name.partition("mini/")[2], post) for name, post in posts.items()]
    words = {one.tag: one.words for one in documents(zipped(tmp_path, files))}
    for name, post in files:
        try:
            text = post.decode()
        except UnicodeDecodeError:
            text = post.decode("latin-1")
        head, _, body = text.partition("\n\n")
        subject = re.search("^subject:(.*)$", head, re.I | re.M)
        expected = data.tokenize(f"{subject[1] if subject else ''}\n{body}")
        assert words.get(name, []) == expected, name
