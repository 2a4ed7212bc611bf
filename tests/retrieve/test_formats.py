"""What is read from a real file of each format: the text, its places, and where it stands in the extracted text."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.retrieve.formats.passages import LONGEST_TITLE, SEPARATOR, Passage, Unreadable
from qrag_jax.retrieve.formats.process import FileReader
from qrag_jax.retrieve.formats.table import READERS, is_plain, read
from tests.support.documents import chapter, write_docx, write_epub, write_one_of_each, write_pdf


def parts(path: Path) -> list[tuple[str, dict[str, int | str]]]:
    """Texts and places; the places of characters are those of the joined text."""
    passages = read(path)
    whole = path.read_text() if is_plain(path) else SEPARATOR.join(one.text for one in passages)
    assert all(whole[one.start : one.start + len(one.text)] == one.text for one in passages)
    return [(one.text, one.place) for one in passages]


def written(path: Path, content: str | bytes) -> list[tuple[str, dict[str, int | str]]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parts(path)


def test_each_format_is_read_the_same_here_and_in_the_process(tmp_path: Path) -> None:
    folder = write_one_of_each(tmp_path / "files")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in READERS]
    assert {path.suffix for path in files} == set(READERS) - {".htm", ".tsv"}
    with FileReader() as reader:
        for path in files:
            assert reader.read(path) == read(path)
        process = reader._process
    assert process is not None
    assert process.returncode is not None, "the process ends with the context"


def test_pages_of_a_pdf(tmp_path: Path) -> None:
    pages = [["Mary kept the ledger.", "It was red."], [], ["John moved it."]]
    assert parts(write_pdf(tmp_path / "a.pdf", pages)) == [
        ("Mary kept the ledger.\nIt was red.", {"page": 1}),
        ("John moved it.", {"page": 3}),
    ]
    pages[1] = None
    assert read(tmp_path / "a.pdf") != read(write_pdf(tmp_path / "b.pdf", pages))
    assert parts(tmp_path / "b.pdf")[1] == ("", {"page": 2}), "a page that is a picture"
    assert parts(write_pdf(tmp_path / "c.pdf", [["Open to all."]], password="")) == [("Open to all.", {"page": 1})]


def test_sections_of_a_word_document(tmp_path: Path) -> None:
    assert parts(write_docx(tmp_path / "a.docx")) == [
        ("Minutes\n\nThe board met on Monday.", {"heading": "Minutes"}),
        ("Budget\n\nDaniel asked for two ovens.\n\n| item | price |\n| oven | 900 |", {"heading": "Minutes > Budget"}),
        ("Staff\n\n- Mary\n- John", {"heading": "Minutes > Staff"}),
    ]


def test_a_book_is_read_in_its_order(tmp_path: Path) -> None:
    """The archive holds the chapters in another order. An empty title of XHTML does not hide the page, and a section may go on in the next
    file."""
    chapters = {"z.xhtml": chapter("<h1>One</h1><p>Fred left.</p>"), "a 2.xhtml": chapter("<p>He came back.</p><h2>End</h2><p>Fin.</p>")}
    assert parts(write_epub(tmp_path / "a.epub", chapters)) == [
        ("One\n\nFred left.\n\nHe came back.", {"heading": "One"}),
        ("End\n\nFin.", {"heading": "One > End"}),
    ]


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        ("<p>One\n two<br>three<div>four<p>five", [("One two\nthree\n\nfour\n\nfive", {})]),
        ("<ul><li>a<li><p>b</p><p>c</p></ul><pre>x  y\n  z\n</pre>", [("- a\n- b\n\nc\n\nx  y\n  z", {})]),
        ("<table><tr><th>a<th>b<tr><td><p>c</p><p>d</p><td></table>", [("| a | b |\n| c d |  |", {})]),
        ("<table><tr><td><h1>T</h1><p>layout<td>side</table>", [("T\n\nlayout\n\nside", {"heading": "T"})]),
        (
            "<nav>Home</nav><script>x</script><style>y</style><noscript>no</noscript><p hidden>h<p>Text<!-- c --><svg><text>s",
            [("Text", {})],
        ),
        ("<div role=navigation>Home</div><button>Copy</button><p style='color:red; display: None'>h<p>Text", [("Text", {})]),
        ("<h1>A<a class=headerlink href=#a>¶</a></h1>a<a href=#b>b</a>", [("A\n\nab", "A")]),
        ("<h1>A</h1>a<h3>B</h3>b<h2>C</h2>c", [("A\n\na", "A"), ("B\n\nb", "A > B"), ("C\n\nc", "A > C")]),
        ("Before<h2> </h2>all<h2>" + "t" * 200 + "</h2>", [("Before\n\nall", {}), ("t" * 200, "t" * (LONGEST_TITLE - 1) + "…")]),
        (b"<meta charset=iso-8859-1><p>Caf\xe9 \x93x\x94", [("Café “x”", {})]),
        ("\ufeff<p>Café".encode("utf-16"), [("Café", {})]),
        ("<meta charset=utf-16><p>Café", [("Café", {})]),
        ("<p>" + "<b>" * 500 + "deep &amp; &#x1F600; &lt;tag&gt;", [("deep & 😀 <tag>", {})]),
    ],
)
def test_the_text_of_a_page(page: str | bytes, wanted: list[tuple[str, object]], tmp_path: Path) -> None:
    assert written(tmp_path / "a.html", page) == [(text, {"heading": at} if isinstance(at, str) else at) for text, at in wanted]


AROUND = "<header><h1>Site</h1>Log in</header><aside>Share</aside>{}<footer>Imprint</footer>"
BODY = "<h2>T</h2><p>A long text of the page.</p>"


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [
        (f"<main>{BODY}<aside>Note.</aside></main>", ["T\n\nA long text of the page.\n\nNote."]),
        (f"<div role=main>{BODY}</div><article>x</article>", ["T\n\nA long text of the page."]),
        ("<main> </main><article><header>By Ann</header>Text.<footer>Source: Bob</footer></article>", ["By Ann\n\nText.\n\nSource: Bob"]),
        (
            f"<article>{BODY}<article>Reply</article></article><article>Second</article>",
            ["T\n\nA long text of the page.\n\nReply\n\nSecond"],
        ),
        (f"<div>{BODY}</div><article>Teaser</article>", ["Site", "T\n\nA long text of the page.\n\nTeaser"]),
        (f"<section>{BODY}<aside>Note.</aside></section>", ["Site", "T\n\nA long text of the page.\n\nNote."]),
        (f"<div role=contentinfo>c</div><div role=banner>b<h1>B</h1></div>{BODY}", ["Site", "B", "T\n\nA long text of the page."]),
    ],
)
def test_what_stands_around_the_content_of_a_page_is_left_out(inside: str, wanted: list[str], tmp_path: Path) -> None:
    assert [text for text, _ in written(tmp_path / "a.html", AROUND.format(inside))] == wanted


def test_a_real_page_with_menus_search_and_footer() -> None:
    """The help of Python's editor, which Sphinx made: 36,000 characters of text among menus."""
    page = Path(pytest.importorskip("idlelib").__file__).with_name("help.html")
    if not page.is_file():
        pytest.skip("this Python has no help of its editor")
    passages = read(page)
    text = SEPARATOR.join(one.text for one in passages)
    assert text.startswith("IDLE\n\n")
    assert ("Startup and Code Execution", "IDLE > Startup and Code Execution") in [
        (one.text.partition("\n")[0], one.place["heading"]) for one in passages
    ]
    assert not [word for word in ("¶", "Copyright", "Previous topic", "Show Source", "Theme") if word in text]
    assert len(text) > 30_000


def test_headings_of_markdown(tmp_path: Path) -> None:
    """Not those in code, in front matter, or without a space; the passages together are the file."""
    text = (
        "---\n# comment\nyear: 2024\n---\nIntro.\n\n# Guide #\n\n```sh\n# no\n~~~\n```\n\n### [Pip](http://x) `now` **x**\n#no\n    # no\n"
        "Two\n---\n\nTwo\n---\nText.\n"
    )
    found = written(tmp_path / "a.md", text)
    assert "".join(passage for passage, _ in found) == text
    assert [(passage.split("\n")[0], place) for passage, place in found] == [
        ("---", {}),
        ("# Guide #", {"heading": "Guide"}),
        ("### [Pip](http://x) `now` **x**", {"heading": "Guide > Pip now x"}),
        ("Two", {"heading": "Guide > Two"}),
    ]
    assert written(tmp_path / "b.md", "\ufeff# Title\nText") == [("\ufeff# Title\nText", {"heading": "Title"})]
    assert written(tmp_path / "c.md", "No heading\n") == [("No heading\n", {})]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", "name,room\nAnn,garden\n\nBob,\n", [("name: Ann; room: garden", 2), ("name: Bob", 4)]),
        ("a.csv", '\ufeff"a,b";c\n1;"x\ny"\n2;3;4\n', [("a,b: 1; c: x\ny", 2), ("a,b: 2; c: 3; column 3: 4", 3)]),
        ("a.tsv", "a\t\n1\t2\n", [("a: 1; column 2: 2", 2)]),
        ("a.csv", "long\n" + "x" * 200_000, [("long: " + "x" * 200_000, 2)]),
        (
            "a.json",
            '[{"a": {"b": 1, "c": [true, null, "x"]}, "d": [{"e": 2}, [3]]}, {}, "s"]',
            [("a.b: 1; a.c: true, x; d.1.e: 2; d.2: 3", 1), ("s", 3)],
        ),
        ("a.json", '{"title": "One", "text": "Two."}', [("title: One; text: Two.", None)]),
        ("a.jsonl", '\ufeff{"a": 1.50}\n \n["\\ud800x", 2]\n', [("a: 1.5", 1), ("�x, 2", 3)]),
    ],
)
def test_rows_and_records(name: str, content: str, wanted: list[tuple[str, int | None]], tmp_path: Path) -> None:
    assert written(tmp_path / name, content) == [(text, {} if row is None else {"row": row}) for text, row in wanted]


def test_lines_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2\n{"a": 3, "a": 4}\n{"a": 5}\n\xff\n')
    *found, fault = read(tmp_path / "a.jsonl")
    assert [(one.text, one.place) for one in found] == [("a: 1", {"row": 1}), ("a: 5", {"row": 4})]
    assert (fault.text, fault.fault) == (
        "",
        "line 2: not JSON: Expecting ',' delimiter at character 8; line 3: the key 'a' stands twice; keep one of them; "
        "line 5: not JSON: not UTF-8: invalid start byte at byte 0",
    )
    with FileReader() as reader:
        assert reader.read(tmp_path / "a.jsonl") == [*found, fault]
    (tmp_path / "b.jsonl").write_text("{\n" * 7)
    with pytest.raises(Unreadable, match=r"^line 1: .*; line 5: [^;]*; and 2 more lines$"):
        read(tmp_path / "b.jsonl")
    (tmp_path / "c.json").write_text('[{"a": 1, "b": {"c": 1, "c": 2}}]')
    with pytest.raises(Unreadable, match="is damaged: the key 'c' stands twice; keep one of them"):
        read(tmp_path / "c.json")


def test_a_file_of_another_suffix_that_is_named_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("# Started")
    assert read(tmp_path / "a.log") == [Passage("# Started")]
