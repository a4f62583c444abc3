"""The page's own files, by the paths that they are served at."""

from pathlib import Path

FOLDER = Path(__file__).with_name("page")
PAGE_FILES = {
    "/": FOLDER / "page.html",
    "/page.js": FOLDER / "page.js",
    "/curves.js": FOLDER / "curves.js",
    "/page.css": FOLDER / "page.css",
}
