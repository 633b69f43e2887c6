"""Who may import whom: the order of modules, no circles, and a light `import latent_reason`."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "latent_reason"

# A module may import modules of its own row and of the rows above it. `data` and `puzzles` stand
# for every module in these folders.
ROWS = (
    {"errors"},
    {"config", "files", "layers", "losses", "model_folder", "results", "command_line"},
    {"recursion", "halting", "train_config"},
    {"reasoner"},
    {"prompts", "generation", "loading", "llm", "base_check", "adapters"},
    {"core", "data"},
    {"latent_reasoner", "controls"},
    {"optim", "metrics", "checkpoint", "run_lock", "stop_request"},
    {"progress", "training", "evaluation", "report", "environment"},
    {"run_frame", "run_options"},
    {"puzzles", "experiment"},
    {"comparison"},
)
ROW_OF = {name: index for index, row in enumerate(ROWS) for name in row}
MAY_IMPORT = {
    "transformers": {
        "prompts",
        "generation",
        "loading",
        "llm",
        "latent_reasoner",
        "controls",
        "data.text",
    },
    "peft": {"controls"},
    "matplotlib": {"report"},
}


def find_modules():
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and parts[-1] != "__main__":
            modules[".".join(parts)] = path
    return modules


MODULES = find_modules()


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk_executed(node):
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        yield child
        yield from walk_executed(child)


def imported_names(module):
    """Absolute dotted names that a module imports, anywhere in it."""
    path = MODULES[module]
    package = ["latent_reason", *module.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in walk_executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def imported_modules(module):
    """Modules of this package that a module imports; the package itself is "latent_reason"."""
    for name in imported_names(module):
        if name.split(".")[0] != "latent_reason":
            continue
        own = name.split(".")[1:]
        while own and ".".join(own) not in MODULES:
            own.pop()
        yield ".".join(own) or "latent_reason"


def test_every_module_has_a_row():
    unknown = {module.split(".")[0] for module in MODULES} - set(ROW_OF)
    assert not unknown, f"put {sorted(unknown)} into ROWS"
    assert len(MODULES) > 5


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_its_own_row_and_above(module):
    row = ROW_OF[module.split(".")[0]]
    for other in imported_modules(module):
        assert other != "latent_reason", f"{module} imports the whole package"
        assert ROW_OF[other.split(".")[0]] <= row, f"{module} may not import {other}"


def test_no_circles():
    graph = {module: set(imported_modules(module)) - {module} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_heavy_libraries_stay_where_they_belong(library):
    users = {
        module
        for module in MODULES
        if any(name.split(".")[0] == library for name in imported_names(module))
    }
    assert users <= MAY_IMPORT[library]


def test_importing_the_package_is_light():
    code = (
        "import sys, latent_reason\n"
        "heavy = {'transformers', 'peft', 'datasets', 'matplotlib', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout == "[]\n"
