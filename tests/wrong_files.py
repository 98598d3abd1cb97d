"""Parsed files with one thing wrong.

In: a document, a path of keys and numbers in it, another value. Out: a copy.
"""

import json
from typing import Any, Final

GONE: Final = object()
"""As a value: nothing is there."""


def changed(document: Any, path: str, value: Any) -> Any:
    """A copy in which the value at a path of keys and numbers is another one, or gone."""
    copy = json.loads(json.dumps(document))  # no part is shared, as the anchors of a file are
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place = copy
    for key in parents:
        place = place[key]
    if value is GONE:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return copy
