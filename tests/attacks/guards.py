"""What keeps a fault out, and how to take it out of the way: file, text, and what stands there without the guard.

`python -m tests.attacks --guards` does so with one at a time, in a copy, and demands that the fault's test then fails.
"""

from __future__ import annotations

__all__ = ["GUARDS"]

IMAGES, GREY, GUARD = "covid_fastai/data/images.py", "covid_fastai/data/grey.py", "covid_fastai/data/guard.py"
CHECKS, METADATA, TABLES = "covid_fastai/data/checks.py", "covid_fastai/data/metadata.py", "covid_fastai/data/tables.py"
CACHE, LAYOUTS, DICOM = "covid_fastai/data/cache.py", "covid_fastai/data/layouts.py", "covid_fastai/data/dicom.py"
BUNDLE, CONFIG = "covid_fastai/model/bundle.py", "covid_fastai/model/bundle_config.py"
PREDICTOR, WEIGHTS = "covid_fastai/model/predictor.py", "covid_fastai/model/weight_files.py"
CHECKPOINT, JOURNAL = "covid_fastai/model/checkpoint.py", "covid_fastai/model/journal.py"
FEATURES, PRECISION = "covid_fastai/model/features.py", "covid_fastai/model/precision.py"
SCHEDULE, FITTING, FILES = "covid_fastai/model/schedule.py", "covid_fastai/fitting.py", "covid_fastai/files.py"
PREDICTIONS, CLI = "covid_fastai/evidence/predictions.py", "covid_fastai/app/cli.py"
ANSWERING, RADIOGRAPHS = "covid_fastai/app/answering.py", "covid_fastai/data/radiographs.py"

GUARDS: dict[str, tuple[str, str, str]] = {
    # images
    "decode": (IMAGES, "            except Exception as error:  # a damaged file makes decoders raise nearly anything\n", "            except ZeroDivisionError as error:\n"),
    "raise_errors": (METADATA, '    if on_problem == "error":\n', '    if on_problem == "never":\n'),
    "predict_row": (PREDICTOR, "        except ImageError as error:\n            return _Opened(None, str(error))\n", "        except ZeroDivisionError as error:\n            return _Opened(None, str(error))\n"),
    "faulty_rows": (METADATA, "index=checker.faulty | checker.repeated", "index=checker.repeated"),
    "sniff_empty": (IMAGES, "    if not content:\n        return", "    if None:\n        return"),
    "sniff_html": (IMAGES, '(b"<!doctype html", b"<html", b"<head")', '(b"<!nothing",)'),
    "sniff_lfs": (IMAGES, 'b"version https://git-lfs"', 'b"version of nothing"'),
    "sniff_text": (IMAGES, '        return "a text file, not an image"', '        return "nothing"'),
    "sniff_other": (IMAGES, '"of a format that is not read (GIF, PDF, EPS, SVG)"', '"of some format"'),
    "cache_key": (CACHE, "known is not None and known[0] == _identity(path)", "known is not None"),
    "name_notes": (IMAGES, "if suffix and suffix not in SUFFIXES[format] else []", "if None else []"),
    "deep": (GREY, "    if stored.mode in DEEP_MODES:\n", "    if None:\n"),
    "percentiles": (GREY, "PERCENTILES = (0.5, 99.5)", "PERCENTILES = (0.0, 100.0)"),
    "no_finite": (GREY, "    if not finite.any():\n", "    if None:\n"),
    "dark": (GREY, "        grey = scale_deep(values) if dark else grey\n", ""),
    "white_is_zero": (GREY, "        return -values\n", "        return values\n"),
    "alpha": (GREY, "        image = Image.alpha_composite(black, image).convert(\"RGB\")\n", "        image = image.convert(\"RGB\")\n"),
    "alpha_value": (GREY, ' or "transparency" in image.info', ""),
    "colour": (GREY, "> COLOUR_GAP", "> 1000"),
    "luminance": (IMAGES, 'luminance = "jfif" in stored.info or stored.info.get("adobe_transform") == 1', "luminance = True"),
    "orientation": (IMAGES, "    if orientation in _TURNS:\n", "    if None:\n"),
    "pixels": (IMAGES, "    if width * height > MAX_PIXELS:\n", "    if None:\n"),
    "bytes": (IMAGES, "    if size > MAX_BYTES:\n", "    if None:\n"),
    "formats": (IMAGES, "return Image.open(file, formats=FORMATS)", "return Image.open(file)"),
    "frames": (IMAGES, "    if frames > 1:\n", "    if None:\n"),
    "sides": (IMAGES, "    if min(width, height) < MIN_SIDE or", "    if None and"),
    "blank": (IMAGES, "    if spread < MIN_SPREAD:\n", "    if None:\n"),
    "fifo": (IMAGES, "        if not stat.S_ISREG(status.st_mode):", "        if None:"),
    "unlike": (GUARD, "    elif values[0] > 1:\n", "    elif None:\n"),
    "turned": (GUARD, "    if values[best] < min(1, TURNED * values[0]):\n", "    if None:\n"),
    "lateral": (METADATA, "    if task.frontal_only:\n", "    if None:\n"),
    "printable": (IMAGES, '.encode("utf-8", "backslashreplace").decode()', ""),
    # DICOM
    "monochrome1": (DICOM, '    if ds.PhotometricInterpretation == "MONOCHROME1":', "    if None:"),
    "dicom_frames": (DICOM, "    if frames != 1:\n", "    if None:\n"),
    # tables and splits
    "outside": (CHECKS, "    if inside is not None and", "    if None and"),
    "missing": (CHECKS, "        meant = nearby.find(path)\n", "        meant = None\n"),
    "bad_name": (CHECKS, '    if "\\0" in path or "\\ufffd" in path or printable(path) != path:\n', "    if None:\n"),
    "row_fifo": (CHECKS, "    if stat.S_ISREG(mode):\n", "    if True:\n"),
    "empty_name": (CHECKS, "    if not path:\n", "    if None:\n"),
    "empty_label": (CHECKS, "            elif not finding:\n", "            elif None:\n"),
    "clash": (CHECKS, "                    if values.nunique() > 1\n", "                    if values.nunique() > 9\n"),
    "duplicates": (CHECKS, "np.asarray(duplicate_groups(readable))", "np.arange(len(readable))"),
    "bom": (TABLES, "if raw.startswith(mark)", "if None"),
    "separator": (TABLES, "max(SEPARATORS, key=unquoted.count), 0", '",", 0'),
    "ragged": (TABLES, "        if len(values) != len(header):\n", "        if None:\n"),
    "double_column": (TABLES, "    if double:\n", "    if None:\n"),
    "contradicts": (LAYOUTS, '(label == "Normal") & (category != "")', '(label == "Normal") & (category == "?")'),
    "one_spelling": (LAYOUTS, "return os.path.normpath(os.path.join(base, name))", "return os.path.join(base, name)"),
    "one_class": ("covid_fastai/data/dataloaders.py", '["there is one class only"] if len(classes) < 2', '[] if len(classes) < 2'),
    "autoescape": ("covid_fastai/evidence/page.py", "autoescape=True", "autoescape=False"),
    # training and files
    "unlink_part": (FILES, "        Path(part).unlink(missing_ok=True)\n", "        pass\n"),
    "restore_folder": (FILES, "    if aside:\n", "    if None:\n"),
    "take_name_back": (BUNDLE, "                os.rename(old, folder)\n", "                pass\n"),
    "resume_optimiser": (SCHEDULE, "            restore_optimiser(learn, checkpoint)\n", "            pass\n"),
    "checkpoint_hash": (CHECKPOINT, "    if not whole:\n", "    if None:\n"),
    "checkpoint_config": (CHECKPOINT, "    if odd:\n", "    if None:\n"),
    "sigterm": (CLI, "    signal.signal(signal.SIGTERM, end)\n", ""),
    "room": (CHECKPOINT, "    if free < needed:\n", "    if None:\n"),
    "cache_works": (CACHE, "            self._works = False\n", ""),
    "guard_loss": (JOURNAL, "        if self.training and not bool(self.loss.isfinite().all()):\n", "        if None:\n"),
    "wild": (PREDICTIONS, '    status[wild], probabilities[wild] = "failed", np.nan\n', ""),
    "onnx_wild": (PREDICTOR, '        status[wild], p[wild] = "failed", np.nan\n', ""),
    "save_nan": (BUNDLE, "    wild = _not_finite(model.state_dict())\n", '    wild = ""\n'),
    "holds_something": (FILES, "    if out.exists() and (not out.is_dir() or any(out.iterdir())):\n", "    if None:\n"),
    "oom": (FITTING, "            if not _is_out_of_memory(error):\n", "            if True:\n"),
    "worker_killed": (RADIOGRAPHS, 'startswith("DataLoader worker")', 'startswith("never")'),
    "features_back": (FEATURES, "        learn.dls.loaders[:] = images\n", "        pass\n"),
    "leave": (SCHEDULE, "            learn.training_precision.leave()\n", "            pass\n"),
    # models, weights
    "pickle_magic": (CONFIG, "content.startswith(PICKLE_MAGIC)", "content.startswith(b'never')"),
    "weights_only": (WEIGHTS, 'map_location="cpu", weights_only=True', 'map_location="cpu", weights_only=False'),
    "verified": (CONFIG, "hashlib.sha256(content).hexdigest() != sha256", "None"),
    "cache_checksum": (CACHE, 'or zlib.crc32(content).to_bytes(CHECKSUM, "little") != checksum', "or None"),
    "odd_tensors": (BUNDLE, "    if odd:\n", "    if None:\n"),
    "tensor_shape": (BUNDLE, "        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:\n", "        if None:\n"),
    "load_nan": (BUNDLE, "    wild = _not_finite(state)\n", '    wild = ""\n'),
    "golden": (CONFIG, "<= GOLDEN_TOLERANCE *", "<= 1e9 *"),
    "class_order": (PREDICTOR, "    if named != json.dumps(config.classes):\n", "    if None:\n"),
    "fingerprint": (CONFIG, "if _fingerprint(raw) != config.fingerprint:", "if None:"),
    "onnx_form": (PREDICTOR, "    if given != [(name, classes) for name in ONNX_OUTPUTS]:\n", "    if None:\n"),
    "name_hash": (WEIGHTS, "        if not sha256.startswith(prefix):\n", "        if None:\n"),
    "cached_hash": (WEIGHTS, "    if expected and not sha256.startswith(expected[1]):\n", "    if None:\n"),
    # page
    "csp": ("covid_fastai/app/gate.py", "default-src 'self'", "default-src *"),
    "nosniff": ("covid_fastai/app/gate.py", '    "X-Content-Type-Options": "nosniff",\n', ""),
    "header": (GUARD, "for note, text in HEADER.items() if note in notes]", "for note, text in HEADER.items() if None]"),
    "fold_text": ("covid_fastai/data/tasks.py", "str(text).casefold())", "str(text))"),
    "rlimit": (ANSWERING, "        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))\n", "        pass\n"),
    "fsize": (ANSWERING, "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n", ""),
    "held_back": (ANSWERING, 'HOLDS_BACK = {"inverted", "turned", "unlike"}', "HOLDS_BACK = set()"),
}  # fmt: skip
