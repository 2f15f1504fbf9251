"""Looks for literals of marked arguments in GraphQL queries. `proxy.core.fields.graphqlrequests` calls it for each of
them that a rule with `graphql_arguments` may see; only then is the parser loaded.

Rules of this module:

- A literal in a query cannot be sealed: a token in its place would be another type, and the query would be another
  query. So a marked argument, or field of an input object, takes its value from a variable, or the request is denied.
- Everything counts in which a value may stand: arguments of fields and directives, input objects and lists at any
  depth, default values, fragments. Aliases change nothing, as arguments keep their names. `null` says nothing.
- A query that the grammar does not know (GraphQL, October 2021) is denied, and so is one that is too long to be parsed
  in one turn. The parser's recursion ends in a denial, too.
- No message has a name or a value of the query in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphql import language as ast
from graphql.error import GraphQLSyntaxError
from graphql.language.parser import Parser

from proxy.core.decisions import Denied
from proxy.core.fields.pauses import Pause, never
from proxy.core.reasons import Reason

MAX_QUERY = 64 * 1024  # characters
MAX_TOKENS = 8192

_HINT = "give marked arguments by variables, which are sealed, and send queries that the GraphQL grammar knows"


def variables_of(query: str, marked: frozenset[str], *, pause: Pause = never) -> frozenset[str]:
    """Return the names of the variables that a query gives to marked arguments.

    Args:
        query: the text of a GraphQL document.
        marked: the names of arguments and fields of input objects.
        pause: called again and again meanwhile.

    Raises:
        Denied: GRAPHQL_LITERAL, if the query has a literal of a marked name; BODY_UNREADABLE, if it cannot be parsed.
    """
    if len(query) > MAX_QUERY:
        raise Denied(
            Reason.BODY_TOO_LARGE, f"the GraphQL query has more than {MAX_QUERY} characters", "use a persisted query"
        )
    try:
        document = _Parser(query, pause).parse_document()
    except (GraphQLSyntaxError, RecursionError):
        raise Denied(
            Reason.BODY_UNREADABLE,
            f"the GraphQL query cannot be parsed, or has more than {MAX_TOKENS} tokens",
            _HINT,
        ) from None
    used: set[str] = set()
    defaults: dict[str, ast.ValueNode] = {}
    for node in _nodes(document):
        pause()
        match node:
            case ast.VariableDefinitionNode(default_value=ast.ValueNode() as default):
                defaults[node.variable.name.value] = default
            case ast.ArgumentNode() | ast.ObjectFieldNode() if node.name.value in marked:
                used |= _only_variables(node.value)
            case ast.InputValueDefinitionNode(default_value=ast.ValueNode() as default) if node.name.value in marked:
                _only_variables(default)
    for name in used & defaults.keys():
        _only_variables(defaults[name])
    return frozenset(used)


class _Parser(Parser):
    def __init__(self, query: str, pause: Pause) -> None:
        super().__init__(query, no_location=True, max_tokens=MAX_TOKENS)
        self._pause = pause

    def advance_lexer(self) -> None:
        self._pause()
        super().advance_lexer()


def _nodes(root: ast.Node) -> Iterator[ast.Node]:
    """Yield a node and all that are in it, without recursion."""
    waiting: list[ast.Node] = [root]
    while waiting:
        node = waiting.pop()
        yield node
        for key in node.keys:
            child = getattr(node, key)
            if isinstance(child, ast.Node):
                waiting.append(child)
            elif isinstance(child, list | tuple):
                waiting += [each for each in child if isinstance(each, ast.Node)]


def _only_variables(value: ast.ValueNode) -> set[str]:
    """Return the names of the variables of which a value is made.

    Raises:
        Denied: GRAPHQL_LITERAL, if it is made of something else, too.
    """
    used: set[str] = set()
    for node in _nodes(value):
        match node:
            case ast.VariableNode():
                used.add(node.name.value)
            case ast.ListValueNode() | ast.ObjectValueNode() | ast.ObjectFieldNode() | ast.NameNode():
                pass
            case ast.NullValueNode():
                pass
            case _:
                raise Denied(Reason.GRAPHQL_LITERAL, "a marked argument of the GraphQL query is a literal")
    return used
