"""The README of the package: that of the sources, with links that work outside of them.

Hatchling runs this when it builds a wheel or an sdist. Links to files of the sources become absolute where
`[project.urls]` has a `Source`, and plain text otherwise; images likewise, or they are left out.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def for_index(text: str, source: str | None = None) -> str:
    """A README whose links and images do not depend on the folder that it lies in.

    Args:
        text: the README, Markdown.
        source: address of the sources, as in https://example.org/owner/name; None where there is none.
    """

    def replaced(link: re.Match) -> str:
        image, words, path = link.groups()
        if source is None:
            return "" if image else words
        return f"{image}[{words}]({source.rstrip('/')}/{'raw' if image else 'blob'}/main/{path})"

    return re.sub(r"\n{3,}", "\n\n", _LINK.sub(replaced, text))


class CustomMetadataHook(MetadataHookInterface):
    """Sets the README of the metadata."""

    def update(self, metadata: dict) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, source)}
