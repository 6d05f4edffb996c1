"""The guards, which are statements of the source that prevent a fault, and the source without one of them.

A guard is marked by a comment on its statement or on the line above it: `# guard: pixels`. Removing it changes the
syntax tree, not the text, so that a marked line can be reworded. Without a guard:

- an `if` is never true, an `except` catches nothing, any other statement does nothing;
- or the entry in `WITHOUT` applies: `if CONDITION:` and `with ITEMS:` replace the head of the statement, `+ CODE` is
  added after it, and any other code replaces it.

`python -m tests.attacks --guards` removes one guard at a time in a copy, and checks that the fault's test then fails.
"""

from __future__ import annotations

import ast
import copy
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Guard", "WITHOUT", "changes_nothing", "find_guards", "take_out"]

MARKER = re.compile(r"\bguard: ([a-z0-9_]+(?:, [a-z0-9_]+)*)$")

WITHOUT: dict[str, str] = {
    "jpeg_2000": "decoder = ''",
    "mixed_hospitals": "outcome = judged[0][1]",
    "training_source": "comparison = SAME",
    "faulty_rows": "usable = table.drop(index=checker.repeated | set(table.index[table['unknown_split']]))",
    "bare_400": "headers = {'Content-Type': 'application/json', 'Content-Length': str(len(body))}",
    "fair_turns": "chosen = self._waiting[0]",
    "ipv6_network": "return address",
    "gone_client": "return await working",
    "sniff_text": "return 'nothing'",
    "sniff_other": "return 'of some format'",
    "cache_key": "return known[1] if known is not None else ''",
    "name_notes": "return []",
    "percentiles": "PERCENTILES = (0.0, 100.0)",
    "misread": "return stored",
    "padding_sign": "low, high = sorted(limits)",
    "alpha": "image = image.convert('RGB')",
    "alpha_value": "if image.mode in ('P', 'PA'):",
    "colour": "return False",
    "luminance": "luminance = True",
    "formats": "return Image.open(file)",
    "printable": "return os.fsdecode(name)",
    "sniff_unknown": "return 'an image'",
    "rescale": "values = stored",
    "blank_window": "if True:",
    "padding": "first = None",
    "missing": "remedy = ''",
    "row_fifo": "if True:",
    "clash": "clash = None",
    "duplicates": "groups[readable.index] = np.arange(len(readable))",
    "bom": "encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if None), 'utf-8')",
    "separator": "return (',', 0)",
    "contradicts": "contradicts = (label == 'Normal') & (category == '?')",
    "one_spelling": "stated = {name: os.path.join(base, name) if name else '' for name in names}",
    "autoescape": "environment = jinja2.Environment(loader=jinja2.PackageLoader('covid_fastai.reporting'), autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)",
    "as_text": "rows.append([value.lstrip('0').replace('NA', '') for value in values])",
    "pretraining_groups": "if True:",
    "too_few": "if True:",
    "every_side": "if True:",
    "by_group": "split.loc[rows.index, 'split'] = np.where(np.arange(len(rows)) % 2 == 1, 'valid', 'train')",
    "last_batch": "if True:",
    "save_nan": "nonfinite = ''",
    "oom": "if True:",
    "worker_killed": "if True:",
    "flushed": "part = str(path)\ndescriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
    "oom_end": "if False:",
    "umask": "return os.open(part, flags, 0o600), part",
    "kept_columns": "kept = list(cohort)",
    "private_key": "run.key.mkdir()",
    "paired_by_name": "return table",
    "no_size": "return name, _read_bytes(source, status.st_size, name)",
    "formula_cells": "return text",
    "inner_cells": "runs = False",
    "claim_file": "return True",
    "inert_markdown": "return text",
    "visible_run_log": "return super().format(record)",
    "part_mode": "mode = 0o666",
    "owner_link": "with open(owner, 'w') as file:",
    "foreign_key": "return True",
    "synthetic_number": "kind = ''",
    "evaluation_outside": "faults = {}",
    "control_characters": "return printable(text)",
    "visible_log": "return super().format(record)",
    "oom_record": "return batch_per_process(config.batch_size)",
    "shm": "return wanted",
    "utc": "return datetime.now().strftime('%Y-%m-%dT%H:%M:%SZ')",
    "outside_lungs": "outside = np.ones((256, 256), dtype=bool)",
    "altered_whole": "with seeing(learn.dls, learn.dls.facts.region):",
    "region_cached": "kind = f'grey-{OPENER}-{image_size}-crops'",
    "whole_images_counted": "whole = 0",
    "same_views": "with torch.no_grad():",
    "weights_only": "state = torch.load(io.BytesIO(content), map_location='cpu', weights_only=False)",
    "cache_checksum": "if len(whole) < CHECKSUM:",
    "load_nan": "nonfinite = ''",
    "pickle_named": "pickles = []",
    "arch_name": "arch: Annotated[str, Field(max_length=100, pattern='')]",
    "onnx_there": "content = path.read_bytes()",
    "one_verdict": "write_part(parts.path / jobs.names[number], table)",
    "hub_files": '+ options["allow_patterns"] = None',
    "no_pickle": "+ import pickle",
    "no_archive": "+\ndef unpack(archive):\n    archive.extractall()",
    "csp": '+ HEADERS["Content-Security-Policy"] = "default-src *"',
    "nosniff": '+ del HEADERS["X-Content-Type-Options"]',
    "fold_label": "return _JOINTS.sub('', str(text))",
    "json_ascii": "text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)",
    "withheld": "WITHHELD_AFTER = set()",
    "many_files": "super().__init__(headers, stream, max_files=10 ** 6, max_fields=10 ** 6, max_part_size=4096)",
    "last_name": "last = name.replace('\\\\', '/')",
    "telemetry": "+ import onnxruntime",
    "in_memory": "self.spool_max_size = 1",
    "hidden_error": "text = str(error)",
    "part_name": "facts.append([path])",
    "cache_private": "self.folder.mkdir(parents=True, exist_ok=True)",
    "data_name": "return str(data)",
    "frozen_unwrapped": "model = self.model",
    "oom_alone": "processes = 1",
    "one_step": "plain = {}",
    "no_wait": "return values.to(x.device, dtype)",
    "covered_whole": "with seeing(learn.dls, learn.dls.facts.region):",
    "one_autocast": "super().__init__(sync_bn=False, **kwargs)",
    "random_of_process": "restore_random_states(learn, checkpoint.facts['random'][0], checkpoint.part('random.0.'))",
    "resumed_device": "return choices.get('device', 'auto')",
}  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """A marked statement.

    Attributes:
        name: The word after `guard:`.
        path: The file.
        line: The line in which the statement starts, from 1.
    """

    name: str
    path: Path
    line: int


def find_guards(root: Path) -> dict[str, Guard]:
    """Return every guard of a repository by name; a name that is used twice is an error."""
    guards: dict[str, Guard] = {}
    for path in [*sorted((root / "covid_fastai").rglob("*.py")), root / "tests" / "conftest.py"]:
        for name, line in _markers(path.read_text(encoding="utf-8")):
            if name in guards:
                raise ValueError(f"guard {name!r} is marked in {guards[name].path} and in {path}")
            guards[name] = Guard(name, path, line)
    return guards


def take_out(text: str, guard: Guard) -> str:
    """Return a module's source without one of its guards."""
    tree = ast.parse(text)
    taker = _Taker(guard)
    taker.visit(tree)
    if taker.changed != 1:
        raise ValueError(f"guard {guard.name!r}: {taker.changed} statements start in line {guard.line} of {guard.path}")
    return ast.unparse(ast.fix_missing_locations(tree))


def changes_nothing(tree: ast.Module, guard: Guard) -> bool:
    """Return whether the guarded statement of a module is the same without its guard."""
    (node,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.excepthandler) and node.lineno == guard.line
    )
    without = _without(copy.deepcopy(node), WITHOUT.get(guard.name))
    without = without if isinstance(without, list) else [without]
    return "\n".join(ast.unparse(ast.fix_missing_locations(each)) for each in without) == ast.unparse(node)


def _markers(text: str) -> list[tuple[str, int]]:
    """Return the marked names, each with the line in which its statement starts."""
    markers = []
    starts = sorted(
        {node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt | ast.excepthandler)}
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        match = MARKER.search(token.string) if token.type == tokenize.COMMENT else None
        if match:
            row, column = token.start
            alone = not token.line[:column].strip()
            line = min(start for start in starts if start > row) if alone else max(s for s in starts if s <= row)
            markers += [(name, line) for name in match[1].split(", ")]
    return markers


class _Taker(ast.NodeTransformer):
    """Remove one guard from a syntax tree."""

    def __init__(self, guard: Guard):
        self.guard, self.changed = guard, 0

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        if getattr(node, "lineno", None) != self.guard.line or not isinstance(node, ast.stmt | ast.excepthandler):
            return self.generic_visit(node)
        self.changed += 1
        return _without(node, WITHOUT.get(self.guard.name))


def _without(node: ast.AST, code: str | None) -> ast.AST | list[ast.AST]:
    """Return the replacement of a guarded statement."""
    if isinstance(node, ast.ExceptHandler):
        node.type = ast.Name("ZeroDivisionError", ast.Load())
    elif isinstance(node, ast.If):
        node.test = ast.parse(f"{code or 'if False:'} pass").body[0].test
    elif isinstance(node, ast.With):
        node.items = ast.parse(f"{code} pass").body[0].items
    elif code is None:
        return ast.Pass()
    elif code.startswith("+"):
        return [node, *ast.parse(code[1:].lstrip(" ")).body]
    else:
        return _parse_statements(code)
    return node


def _parse_statements(code: str) -> list[ast.stmt]:
    """Parse statements, which may contain a `return`."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return ast.parse(f"def place():\n{lines}").body[0].body
