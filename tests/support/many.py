"""Many caches in no time: one is written, the others are its manifest, sealed again for another dataset."""

import json
from dataclasses import replace
from pathlib import Path

from featcache.store.files import canonical_json, sha256_hex
from support.caches import cache_folder, make_content, make_plan, write_cache


def make_many(root: Path, count: int, *, num_layers: int = 3, samples: int = 300) -> None:
    """Fill `root` with `count` caches in 50 dataset folders; all but the first have no features."""
    plan = make_plan({"train": samples, "test": samples}, num_layers=num_layers, width=1)
    first = cache_folder(root, plan)
    write_cache(first, plan, make_content(plan))
    document = json.loads((first / "manifest.json").read_bytes())
    del document["digest"]
    provenance = (first / "provenance.json").read_bytes()
    for number in range(1, count):
        spec = replace(plan.spec, dataset={"kind": "made", "number": number})
        document |= {"key": spec.key, "spec": spec.to_dict()}
        folder = root / f"data-{number % 50}" / f"tiny-{spec.key}"
        folder.mkdir(parents=True)
        sealed = {**document, "digest": sha256_hex(canonical_json(document))}
        (folder / "manifest.json").write_bytes(
            json.dumps(sealed, indent=1, ensure_ascii=False).encode() + b"\n"
        )
        (folder / "provenance.json").write_bytes(provenance)
