"""The README's picture is what the library makes of its block."""

from tests.support.browser import needs_browser
from tests.support.readme_picture import PICTURE, picture

pytestmark = needs_browser


def test_the_picture_is_that_of_the_library() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture()


def test_the_picture_shows_both_graphs() -> None:
    drawn = picture()
    assert drawn.count('class="r1"') == 7 + 1
    assert "conv 3x3, 64 → 64" in drawn
