"""Checks what the wheel holds: the package with every recipe and configuration, and no results, tests or benchmarks."""

import sys
import zipfile
from pathlib import Path

LARGEST = 1_000_000  # bytes

path = Path(sys.argv[1])
names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
package = {str(file) for suffix in ("*.py", "py.typed") for file in Path("ibreg").rglob(suffix)}
beside = {f"ibreg/{file}" for file in (*Path("recipes").glob("*.py"), *Path("configs").rglob("*.yaml"))}
expected = package | beside
if names != expected:
    sys.exit(f"{path}: missing {sorted(expected - names)}, unexpected {sorted(names - expected)}")
if path.stat().st_size > LARGEST:
    sys.exit(f"{path}: {path.stat().st_size:,} bytes, more than {LARGEST:,}")
print(f"{path}: {len(names)} files, {path.stat().st_size:,} bytes")
