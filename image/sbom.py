"""``python -m image.sbom PACKAGES VERSION OUT``: the image's bill of materials, CycloneDX 1.6.

Read from the standard input: what cyclonedx-py found in the virtual environment. Added: the base's
packages that are in the image, and the interpreter where none of them brought it. The result is
validated against the specification's schema before it is written, and says no time and no random
number, so that the same image has the same one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

Json = dict[str, Any]
_NAME: Final = "valetkey"


def whole(found: Json, base: Json, version: str) -> Json:
    """The bill of the image. ``found``: of the environment; ``base``: packages.json of the tree."""
    made = {key: held for key, held in found.items() if key != "serialNumber"}
    components = [*found["components"], *map(_debian, base["packages"])]
    if base["python"] is not None:
        components.append(_python(base["python"]))
    own = [each for each in components if each["name"] == _NAME]
    if [each["version"] for each in own] != [version]:
        raise SystemExit(f"the environment has not one {_NAME} {version}: {own}")
    main = {
        "type": "container",
        "bom-ref": "image",
        "name": _NAME,
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    made["metadata"] = {
        key: held for key, held in found.get("metadata", {}).items() if key != "timestamp"
    } | {"component": main}
    made["components"] = sorted(components, key=lambda each: each["bom-ref"])
    refs = sorted(each["bom-ref"] for each in components)
    made["dependencies"] = [*found.get("dependencies", ()), {"ref": "image", "dependsOn": refs}]
    return made


def _debian(package: dict[str, str]) -> Json:
    """https://github.com/package-url/purl-spec, type deb."""
    version = quote(package["version"], safe=".-~")
    purl = f"pkg:deb/debian/{package['name']}@{version}?arch={package['architecture']}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
        "properties": [
            # What scanners look advisories up by.
            {"name": "debian:source", "value": package["source"]},
            {"name": "debian:source_version", "value": package["source_version"]},
        ],
    }


def _python(version: str) -> Json:
    return {
        "type": "platform",
        "bom-ref": f"pkg:generic/python@{version}",
        "name": "python",
        "version": version,
        "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        "purl": f"pkg:generic/python@{version}",
    }


def main(arguments: list[str]) -> int:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    packages, version, out = arguments
    made = whole(json.load(sys.stdin), json.loads(Path(packages).read_text()), version)
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"not CycloneDX 1.6: {wrong}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
