import json
import os
import subprocess
import sys
from io import BytesIO

import polars as pl
import pytest
from PIL import Image

from core.errors import InputError
from core.export import huggingface
from core.export.formats import export
from core.ingest.parquet import rows
from data_contracts import Drafts, HallucinationPairs, Revisions, Samples
from tests.core.export.datasets import encoded
from tests.core.export.test_json import own, sample


def load_dataset(cache, code, *args):
    """What datasets finds, in a process of its own: its caches and offline mode are set when it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, "-c", f"import datasets, json, sys\nprint(json.dumps({code}))", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kind_of_column_opens_in_polars_and_datasets(tmp_path, memory):
    drafts, revisions = zip(
        own(0, "revised", [("a", "b", None), ("c", "d", "not_found")]), own(1, "right", []), strict=True
    )
    grounded = sample(0, None, reference="A 🎈.") | {"grounding": [{"start": 0, "end": 1, "region": 2}]}
    memory.add(Samples, [grounded, sample(1, "0" * 64)]).add(Samples, []).add(Samples, [sample(2, None, split="dev")])
    memory.add(Drafts, drafts).add(Revisions, revisions).add(HallucinationPairs, [])
    assert export(memory, "parquet", tmp_path / "out") == 3 + 2 + 2
    for schema in (Samples, Drafts, Revisions, HallucinationPairs):
        frame = pl.concat(memory.parts[schema.table])
        again = pl.scan_parquet(tmp_path / "out" / f"{schema.table}.parquet").collect()
        assert again.cast(frame.schema).equals(frame)
    names = ("samples", "drafts", "revisions")
    files = [tmp_path / "out" / f"{name}.parquet" for name in names]
    code = "[datasets.load_dataset('parquet', data_files=one, split='train').to_list() for one in sys.argv[1:]]"
    for name, found in zip(names, load_dataset(tmp_path / "cache", code, *files), strict=True):
        assert found == pl.concat(memory.parts[name]).to_dicts()


def test_one_table_can_be_one_file(tmp_path, memory):
    memory.add(Samples, [sample(0, None)])
    assert export(memory, "parquet", tmp_path / "out.parquet") == 1
    assert pl.read_parquet(tmp_path / "out.parquet")["sample_id"].to_list() == ["s0"]
    memory.add(HallucinationPairs, [])
    with pytest.raises(InputError, match="the tables samples, hallucination_pairs: give a folder"):
        export(memory, "parquet", tmp_path / "out.parquet")


def shown(memory, count):
    splits = ("train", "dev", "train")
    images = [None if i % 4 == 3 else memory.put(encoded(str(i), ("PNG", "JPEG")[i % 2])) for i in range(count)]
    rows = [sample(i, sha, reference=f"é {i} 🎈", split=splits[i % 3]) for i, sha in enumerate(images)]
    for first in range(0, count, 5):
        memory.add(Samples, rows[first : first + 5])
    return images


@pytest.mark.parametrize("shard_bytes", [huggingface._SHARD_BYTES, 2000])
def test_the_folder_opens_in_datasets_with_splits_and_images(tmp_path, memory, monkeypatch, shard_bytes):
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(huggingface, "_GROUP_ROWS", 4)
    images = shown(memory, 30)
    assert export(memory, "hf", tmp_path / "out") == 30
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert "train-00000-of-00001.parquet" in names or shard_bytes == 2000
    assert len(names) == 2 or shard_bytes == 2000
    code = (
        "{name: {'type': str(split.features['image']), 'rows': [(r['sample_id'], r['prompt'], r['reference'], "
        "r['image'] and (r['image'].size, r['image'].format, r['image'].convert('RGB').tobytes().hex())) "
        "for r in split]} for name, split in datasets.load_dataset(sys.argv[1]).items()}"
    )
    found = load_dataset(tmp_path / "cache", code, tmp_path / "out")
    assert set(found) == {"train", "validation"}
    assert all(split["type"].startswith("Image(") for split in found.values())
    rows = {row[0]: row for split in found.values() for row in split["rows"]}
    assert len(rows) == 30
    for index, sha in enumerate(images):
        _, prompt, reference, image = rows[f"s{index}"]
        assert (prompt, reference) == ("Describe.", f"é {index} 🎈")
        if sha is None:
            assert image is None
            continue
        assert image[:2] == [[3, 3], ("PNG", "JPEG")[index % 2]]
        assert bytes.fromhex(image[2]) == pixels(memory.images[sha])


def pixels(data):
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def test_a_file_of_the_folder_is_read_back_as_the_same_samples(tmp_path, memory):
    images = shown(memory, 9)
    export(memory, "hf", tmp_path / "out")
    found = {}
    for path in (tmp_path / "out" / "data").iterdir():
        found |= {row.reference: (row.prompt, row.image_bytes) for row in rows(path)}
    assert found == {f"é {i} 🎈": ("Describe.", memory.images.get(sha)) for i, sha in enumerate(images)}


def test_a_folder_that_is_there_is_left_alone(tmp_path, memory):
    shown(memory, 3)
    (tmp_path / "out").mkdir()
    assert export(memory, "hf", tmp_path / "out") == 3
    card = (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="is there already"):
        export(memory, "hf", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == card


def test_a_failed_export_leaves_nothing(tmp_path, memory):
    shown(memory, 6)
    memory.images.popitem()
    with pytest.raises(KeyError):
        export(memory, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
