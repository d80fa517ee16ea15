"""A process that reads the caches under a root again and again, whatever else happens to them.

``python -m support.reader_loop ROOT`` ends when ROOT/stop exists. For every look it says the folder and the rows that it
saw, or the error; an error that is not a `CacheError`, or a wrong row, ends it.
"""

import json
import sys
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.reading.reader import open_cache
from support.caches import check_partial, make_content, make_plan


def main() -> None:
    """Look until told to stop."""
    root, content = Path(sys.argv[1]), make_content(make_plan())
    while not (root / "stop").exists():
        for directory in sorted(root.glob("cache-*"))[-2:]:
            look = {"directory": directory.name, "rows": 0, "error": ""}
            try:
                look["rows"] = check_partial(open_cache(directory, allow_partial=True), content)
            except CacheError as error:
                look["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(look), flush=True)


if __name__ == "__main__":
    main()
