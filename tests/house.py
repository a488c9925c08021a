"""The rules of the package's structure, each as a function that lists what breaks it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

# From the top down: a folder may import itself, the folders after it, and the files beside them.
FOLDERS = (
    "cli", "commands", "weights", "features", "autoencoders", "images", "runs", "latents",
    "samples", "engine", "metrics", "storage", "machine", "settings", "model", "core",
)  # fmt: skip
BELOW_COMMANDS = FOLDERS[2:]
MATHEMATICS = ("core", "model")
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


class File:
    """One source file of a package."""

    def __init__(self, path: Path, package: Package) -> None:
        self.path, self.package = path, package
        self.inside = path.relative_to(package.folder)
        parts = self.inside.with_suffix("").parts
        self.module = ".".join([package.name, *(p for p in parts if p != "__init__")])
        self.folder = parts[0] if len(parts) > 1 else ""
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def __str__(self) -> str:
        return str(self.inside)

    @cached_property
    def imports(self) -> set[str]:
        """Every module it imports, at the top or inside functions, in full."""
        return self._modules_in(self.tree)

    def _modules_in(self, tree: ast.AST) -> set[str]:
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in self.package.modules else node.module or "")
        return found

    @cached_property
    def imports_at_the_top(self) -> set[str]:
        """The modules it imports when it is imported itself."""
        top = ast.Module(
            [n for n in self.tree.body if isinstance(n, ast.Import | ast.ImportFrom)], []
        )
        return self._modules_in(top)

    @property
    def imported_files(self) -> Iterator[File]:
        for module in sorted(self.imports & self.package.modules.keys()):
            yield self.package.modules[module]

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node


class Package:
    """The source files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.modules: dict[str, File] = {}
        for path in sorted(folder.rglob("*.py")):
            file = File(path, self)
            self.modules[file.module] = file

    @property
    def files(self) -> list[File]:
        return list(self.modules.values())


def relative_imports(package: Package) -> list[str]:
    return [
        f"{file}: {ast.unparse(node)}"
        for file in package.files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def imports_that_go_up(package: Package) -> list[str]:
    """A folder that imports one above it, and a light file that imports a folder."""
    wrong = []
    for file in package.files:
        if file.module in (package.name, f"{package.name}.__main__"):
            continue
        for other in file.imported_files:
            if not other.folder:
                continue
            allowed = FOLDERS[FOLDERS.index(file.folder) :] if file.folder in FOLDERS else ()
            if other.folder not in allowed:
                wrong.append(f"{file} imports {other}")
    return wrong


def mathematics_with_libraries(package: Package) -> list[str]:
    """Code of core and model that needs more than torch, or that needs the other of the two."""
    wrong = []
    for file in package.files:
        if file.folder not in MATHEMATICS:
            continue
        roots = {module.split(".")[0] for module in file.imports}
        strange = sorted(roots - {*sys.stdlib_module_names, "torch", package.name})
        wrong += [f"{file} imports {root}" for root in strange]
        (other,) = set(MATHEMATICS) - {file.folder}
        wrong += [f"{file} imports {f}" for f in file.imported_files if f.folder == other]
    return wrong


def circles(package: Package) -> list[str]:
    """Files that import each other, directly or around a corner, inside functions too."""
    above: list[File] = []
    done: set[str] = set()
    found = []

    def visit(file: File) -> None:
        if file in above:
            found.append(" -> ".join(map(str, [*above[above.index(file) :], file])))
        if file in above or file.module in done:
            return
        above.append(file)
        for other in file.imported_files:
            visit(other)
        above.pop()
        done.add(file.module)

    for file in package.files:
        visit(file)
    return found


def long_files(package: Package) -> list[str]:
    lengths = {file: len(file.text.splitlines()) for file in package.files}
    return [f"{file} has {n} lines" for file, n in lengths.items() if n > MOST_LINES]


def long_functions(package: Package) -> list[str]:
    return [
        f"{file}: {function.name} has {function.end_lineno - function.lineno + 1} lines"
        for file in package.files
        for function in file.functions
        if function.end_lineno - function.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]


def settings_below_commands(package: Package) -> list[str]:
    """Code below the commands that knows a settings class; it is to get values."""
    return [
        f"{file} imports {other}"
        for file in package.files
        if file.folder in BELOW_COMMANDS and file.folder != "settings"
        for other in file.imported_files
        if other.folder == "settings"
    ]


# Which file holds the table that a field names a row of.
TABLES = {
    "interpolant": "core/interpolant.py",
    "prediction": "core/prediction.py",
    "loss_weight": "core/prediction.py",
    "betas": "core/chain.py",
    "variance": "core/chain.py",
    "solver": "core/ode.py",
    "last_step": "core/sde.py",
    "wt": "core/wt.py",
    "t_dist": "core/times.py",
    "distribution": "core/times.py",
    "block": "model/blocks.py",
    "mlp": "model/blocks.py",
    "norm": "model/blocks.py",
    "schedule": "commands/train/recipe.py",
    "vae": "autoencoders/load.py",
    "crop": "images/decode.py",
    "lineage": "weights/lineages.py",
    "format": "weights/formats.py",
    "features": "features/extractors.py",
    "align_features": "features/aligners.py",
}
# The delivered pipeline runs without sit: it has tables of its own.
WITHOUT_SIT = ("weights/pipeline.py",)


def rows_asked_by_name(package: Package) -> list[str]:
    """Code that compares a row's name with a string, outside the file that holds the row.

    A row answers what is asked of it; a comparison elsewhere forgets the row that comes next.
    """
    wrong = []
    for file in package.files:
        for node in ast.walk(file.tree) if str(file) not in WITHOUT_SIT else ():
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            fields = {getattr(s, "attr", getattr(s, "id", "")) for s in sides} & TABLES.keys()
            names = [c for side in sides for c in getattr(side, "elts", [side])]
            named = any(isinstance(c, ast.Constant) and isinstance(c.value, str) for c in names)
            if named and any(str(file) != TABLES[field] for field in fields):
                wrong.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    return wrong


# Large commands, and the rooms that one of them does without, with the reason.
LARGE_COMMANDS = ("train", "sample", "evaluate", "encode", "inspect", "bench")
ROOMS = ("stage.py", "job.py", "report.py")
WITHOUT_ROOM = {
    # Nothing is resolved: a path is opened, and what is there is described by its own file.
    ("inspect", "job.py"),
    # store.py, samples.py and run.py each say what they found.
    ("inspect", "report.py"),
}


def missing_rooms(package: Package) -> list[str]:
    """Large commands without a file that tells the story, resolves the settings, or reports."""
    files = {str(file) for file in package.files}
    return [
        f"commands/{command} has no {room}"
        for command in LARGE_COMMANDS
        for room in ROOMS
        if f"commands/{command}/{room}" not in files and (command, room) not in WITHOUT_ROOM
    ]


# Files that help texts, launchers and `sit watch` need at once, without torch's two seconds.
TORCH_FREE = (
    "__main__.py", "names.py", "errors.py", "events.py", "text.py", "settings/", "cli/",
    "machine/world.py", "machine/children.py", "storage/files.py", "storage/locks.py",
    "commands/newest.py", "commands/watch.py",
)  # fmt: skip
HEAVY = ("torch", "deepspeed", "diffusers", "numpy", "h5py", "matplotlib")


def heavy_imports(package: Package) -> list[str]:
    """Torch-free files that import a heavy library at their top, directly or through others."""
    wrong = []
    for file in package.files:
        if not str(file).startswith(TORCH_FREE):
            continue
        seen, todo = set(), [file]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            roots = {module.split(".")[0] for module in one.imports_at_the_top}
            wrong += [f"{file} imports {h} through {one}" for h in HEAVY if h in roots]
            modules = one.imports_at_the_top & package.modules.keys()
            todo += [package.modules[module] for module in modules]
    return wrong


# Source files that need no mirrored test file, and why.
WITHOUT_A_MIRROR = {
    # Import statements, names and docstrings: there is no behaviour to test.
    "names.py", "errors.py", "events.py", "images/place.py", "__main__.py",
    # Fields and their help, frozen in tests/cli/options.txt and tested in tests/cli.
    "settings/encode.py", "settings/evaluate.py", "settings/latents.py", "settings/option.py",
    "settings/sample.py", "settings/tools.py", "settings/train.py", "settings/weights.py",
    # Each hands a settings class on to its command; tests/cli/test_app.py tests them together.
    "cli/bench.py", "cli/ema.py", "cli/encode.py", "cli/evaluate.py", "cli/export.py",
    "cli/flops.py", "cli/import_latents.py", "cli/import_weights.py", "cli/inspect.py",
    "cli/quickstart.py", "cli/sample.py", "cli/train.py",
    # Needs a run, sample sets and figures: tests/whole/test_history.py.
    "commands/evaluate/history.py",
}  # fmt: skip
ELSEWHERE = ("whole", "examples")  # folders of tests that mirror no source


def _test_files(tests: Path) -> list[Path]:
    return sorted(path.relative_to(tests) for path in tests.rglob("test_*.py"))


def tests_that_mirror_nothing(package: Package, tests: Path) -> list[str]:
    """Test files a/test_b.py without a source file a/b.py; those at the top may be of anything."""
    sources = {file.inside for file in package.files}
    return [
        f"{path} mirrors no {path.parent / path.name.removeprefix('test_')}"
        for path in _test_files(tests)
        if len(path.parts) > 1 and path.parts[0] not in ELSEWHERE
        if path.parent / path.name.removeprefix("test_") not in sources
    ]


def sources_without_tests(package: Package, tests: Path) -> list[str]:
    """Source files a/b.py without a test file a/test_b.py, and exemptions that are not needed."""
    found = set(_test_files(tests))
    sources = {file.inside for file in package.files if file.path.name != "__init__.py"}
    missing = {s.as_posix() for s in sources if s.with_name(f"test_{s.name}") not in found}
    return [
        *(f"{source} has no test file" for source in sorted(missing - WITHOUT_A_MIRROR)),
        *(f"{source} needs no exemption" for source in sorted(WITHOUT_A_MIRROR - missing)),
    ]


def tests_that_import_tests(tests: Path) -> list[str]:
    """Files that import from a test file, programs inside strings included."""
    imports = re.compile(r"\b(?:from|import) +(tests\.(?:\w+\.)*test_\w+)")
    return [
        f"{path.relative_to(tests)} imports {module}"
        for path in sorted(tests.rglob("*.py"))
        for module in imports.findall(path.read_text())
    ]
