"""README.md, a Hugging Face dataset card, and croissant.json, its machine-readable twin."""

from collections.abc import Mapping
from typing import Any

import yaml

from laionkit.core.files import Folder, Written
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.export import Export
from laionkit.stages.subset.facts import Facts

CROISSANT = "croissant.json"
_FORMS = {
    "shards": "`00000.tar` … hold `KEY.jpg`, `KEY.txt` and `KEY.json`; `sizes.json` counts them.",
    "view": "`view.parquet` says where each picture lies in the dataset's own shards; no copies.",
    "files": "`files/` holds `KEY.jpg`, `KEY.txt` and `KEY.json` of each sample.",
    "parquet": "`kept.parquet` is a list of links with captions and scores; no pictures.",
}
# DuckDB's types as those of `datasets`, and as schema.org's.
_HF_TYPES = {
    "BIGINT": "int64",
    "INTEGER": "int32",
    "SMALLINT": "int16",
    "TINYINT": "int8",
    "UBIGINT": "uint64",
    "UINTEGER": "uint32",
    "DOUBLE": "float64",
    "FLOAT": "float32",
    "BOOLEAN": "bool",
}
_SCHEMA_TYPES = {"float64": "sc:Float", "float32": "sc:Float", "bool": "sc:Boolean"}


def write_card(folder: Folder, config: SubsetConfig, facts: Facts, export: Export) -> Written:
    """Write README.md: YAML that declares every field, then what was done, for people."""
    head = yaml.safe_dump(_yaml(config, facts, export), sort_keys=False, width=1000)
    counts = facts.counts
    lines = [
        "---",
        head.rstrip(),
        "---",
        f"# {config.name}",
        "",
        f"{counts.ok:,} of {counts.seen:,} samples, written by `laionkit subset`.",
        f"Root hash: `{facts.root}` (`laionkit verify` recomputes it).",
        "",
        f"{_FORMS[config.as_]} `dropped.parquet` names, for every sample left out, the first step "
        "it failed and the value seen.",
        "",
        "## How it was chosen",
        "",
        *(f"- `{name}`: `{value}`" for name, value in recipe(config).items()),
        "",
        "| step | came | dropped | left | dropped by it alone |",
        "|---|---:|---:|---:|---:|",
    ]
    for step in facts.funnel:
        alone = f"{facts.exclusive[step.name]:,}" if step.name in facts.exclusive else ""
        left = step.seen - step.dropped
        lines.append(
            f"| {_cell(step.name)} | {step.seen:,} | {step.dropped:,} | {left:,} | {alone} |"
        )
    lines += _table("Dropped for", counts.reasons.items())
    lines += _table("Licence", facts.licences)
    lines += ["", "## Columns", "", "| column | type | origin |", "|---|---|---|"]
    lines += [
        f"| {_cell(name)} | {kind} | {facts.origins[name].replace('|', '/')} |"
        for name, kind in facts.columns.items()
    ]
    if facts.notes:
        lines += ["", *(f"{note[0].upper()}{note[1:]}." for note in facts.notes)]
    lines += [
        "",
        "Pictures belong to who made them; a licence is what the page stated, if anything.",
    ]
    return folder.write_bytes("README.md", ("\n".join(lines) + "\n").encode())


def write_croissant(folder: Folder, config: SubsetConfig, facts: Facts, export: Export) -> Written:
    """Write croissant.json (Croissant 1.0) over kept.parquet and the files beside it."""
    files = [
        _file_object(written)
        for role, written in sorted(export.files.items())
        if role in ("kept", "dropped", "manifest") or role.startswith("tar-")
    ]
    record_set = {
        "@type": "cr:RecordSet",
        "@id": "kept",
        "name": "kept",
        "description": "One record for each sample kept.",
        "key": {"@id": "kept/key"},
        "field": [_field(name, kind) for name, kind in facts.columns.items()],
    }
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": config.name,
        "description": f"{facts.counts.ok} of {facts.counts.seen} samples, chosen by laionkit.",
        "license": "https://choosealicense.com/no-permission/",
        **({"isBasedOn": facts.sources} if facts.sources else {}),
        "version": "1.0.0",
        "distribution": files,
        "recordSet": [record_set],
    }
    return folder.write_json(CROISSANT, described)


def _yaml(config: SubsetConfig, facts: Facts, export: Export) -> dict[str, Any]:
    """The card's metadata: which files are the data, and the type of every field."""
    head: dict[str, Any] = {
        "license": "other",
        "task_categories": ["text-to-image", "image-to-text"],
        "size_categories": [_size_category(facts.counts.ok)],
        "tags": ["laionkit", "webdataset" if config.as_ == "shards" else "parquet"],
    }
    if config.as_ != "shards":
        split = [{"split": "train", "path": "kept.parquet"}]
        return {**head, "configs": [{"config_name": "default", "data_files": split}]}
    row = [{"name": name, "dtype": _hf_type(kind)} for name, kind in facts.columns.items()]
    features = [
        *({"name": extension, "dtype": "image"} for extension in sorted(export.extensions)),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": row},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]
    return {
        **head,
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}
        ],
        "dataset_info": {
            "features": features,
            "splits": [
                {"name": "train", "num_bytes": export.bytes, "num_examples": facts.counts.ok}
            ],
        },
    }


def _hf_type(kind: str) -> str:
    return _HF_TYPES.get(kind, "string")


def _field(name: str, kind: str) -> dict[str, Any]:
    hf = _hf_type(kind)
    whole = "sc:Integer" if "int" in hf else "sc:Text"
    return {
        "@type": "cr:Field",
        "@id": f"kept/{name}",
        "name": f"kept/{name}",
        "dataType": _SCHEMA_TYPES.get(hf, whole),
        "source": {"fileObject": {"@id": "kept.parquet"}, "extract": {"column": name}},
    }


def _file_object(written: Written) -> dict[str, Any]:
    kinds = {"tar": "application/x-tar", "json": "application/json"}
    return {
        "@type": "cr:FileObject",
        "@id": written.path,
        "name": written.path,
        "contentUrl": written.path,
        "contentSize": f"{written.size} B",
        "encodingFormat": kinds.get(written.path.rpartition(".")[2], "application/x-parquet"),
        "sha256": written.sha256,
    }


def recipe(config: SubsetConfig) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    fields = type(config).model_fields
    return {
        name.strip("_"): value
        for name, value in config.what().items()
        if name != "name" and value != fields[name].get_default() and value not in ([], ())
    }


def _table(title: str, rows: Any) -> list[str]:
    found = list(rows)
    if not found:
        return []
    lines = ["", f"| {title.lower()} | samples |", "|---|---:|"]
    return lines + [f"| {_cell(name)} | {count:,} |" for name, count in found]


def _cell(text: str) -> str:
    """Text of the data as inline code that can break out of neither the table nor the code."""
    flat = " ".join(text.split()).replace("|", "¦").replace("`", "'")
    return f"`{flat[:200]}`"


def _size_category(samples: int) -> str:
    steps = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
             (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")]  # fmt: skip
    return next((name for limit, name in steps if samples < limit), "n>1B")


_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
