"""Reads small XML files into a tree, for Android's network security configuration.

Rules of this module:

- A document type declaration is refused, and so there are no entities but the five of XML: nothing expands, and nothing
  is fetched.
- Depth and number of elements are limited, and the time is linear in the length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

MOST_DEPTH = 32
MOST_ELEMENTS = 50_000


class BadXml(ValueError):
    """It is no XML that is read here. The message says why, and in which line."""


@dataclass(slots=True)
class Node:
    """An element: its name, attributes, the text directly in it, its children, and the line in which it begins."""

    name: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Node] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)

    def all(self, name: str) -> list[Node]:
        """Return the children of a name."""
        return [child for child in self.children if child.name == name]


def read_xml(data: bytes) -> Node:
    """Return the root element.

    Raises:
        BadXml: it is not well-formed, has a document type, or is too deep or too large.
    """
    parser = expat.ParserCreate()
    top = Node("", {}, 0)
    path, count = [top], 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(path) > MOST_DEPTH or count > MOST_ELEMENTS:
            raise BadXml(f"line {parser.CurrentLineNumber}: it is too deep, or has too many elements")
        node = Node(name, attributes, parser.CurrentLineNumber)
        path[-1].children.append(node)
        path.append(node)

    def end(_name: str) -> None:
        node = path.pop()
        node.text = "".join(node._pieces)

    def text(piece: str) -> None:
        path[-1]._pieces.append(piece)

    def refuse(*_: object) -> None:
        raise BadXml(f"line {parser.CurrentLineNumber}: a document type (DTD) or an entity is not read")

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise BadXml(f"line {error.lineno}: it is no well-formed XML") from None
    return top.children[0]
