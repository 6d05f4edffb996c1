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
SPLITS = "covid_fastai/data/splits.py"
LOADERS = "covid_fastai/data/dataloaders.py"
RUNS = "covid_fastai/evidence/runs.py"
REMARKS = "covid_fastai/evidence/remarks.py"
DOCUMENTS = "covid_fastai/evidence/documents.py"
LEARNER = "covid_fastai/model/learner.py"
HUB = "covid_fastai/model/hub.py"
MODEL_WEIGHTS = "covid_fastai/model/weights.py"
UPLOADS = "covid_fastai/app/uploads.py"
GATE = "covid_fastai/app/gate.py"
WORKERS = "covid_fastai/app/workers.py"
PATIENCE = "covid_fastai/app/patience.py"
BATCH = "covid_fastai/app/batch.py"
BATCH_WORKERS = "covid_fastai/app/batch_workers.py"

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
    "sniff_unknown": (IMAGES, '    return "not an image of a known format"', '    return "an image"'),
    "exif": (IMAGES, "    except Exception:  # noqa: BLE001 - damaged EXIF", "    except ZeroDivisionError:  # noqa: BLE001 - damaged EXIF"),
    "dead_link": (IMAGES, "        if os.path.islink(source):\n", "        if None:\n"),
    "header_error": (IMAGES, "    except Exception as error:  # so does a damaged header\n", "    except ZeroDivisionError as error:\n"),
    "coloured": (GUARD, '    if "colour" in notes:\n', "    if None:\n"),
    # DICOM
    "monochrome1": (DICOM, '    if ds.PhotometricInterpretation == "MONOCHROME1":', "    if None:"),
    "dicom_frames": (DICOM, "    if frames != 1:\n", "    if None:\n"),
    "no_decoder": (DICOM, '        elif isinstance(error, NotImplementedError) or "missing required dependencies" in str(error):\n', "        elif None:\n"),
    "twelve_bit": (DICOM, "        if syntax == JPEG_12_BIT and int(ds.BitsStored) > 8:\n", "        if None:\n"),
    "dicom_extra": (DICOM, "    except ImportError as error:\n", "    except ZeroDivisionError as error:\n"),
    "dicom_header": (DICOM, "    except Exception:  # noqa: BLE001 - junk makes pydicom", "    except ZeroDivisionError:  # noqa: BLE001 - junk makes pydicom"),
    "no_picture": (DICOM, '    if "PixelData" not in ds:\n', "    if None:\n"),
    "dicom_damage": (DICOM, "    except Exception:  # noqa: BLE001 - damage makes numpy", "    except ZeroDivisionError:  # noqa: BLE001 - damage makes numpy"),
    "jpeg_frame": (DICOM, "        _check_frame(ds, name)\n", "        pass\n"),
    "deflate": (DICOM, "        _check_deflated(content, name)\n", "        pass\n"),
    "window": (DICOM, '    if function == "LINEAR":\n', "    if None:\n"),
    "rescale": (DICOM, "    values = apply_modality_lut(stored, ds)\n", "    values = stored\n"),
    "blank_window": (DICOM, "        if np.ptp(grey[inside].round()) > 1:\n", "        if True:\n"),
    "padding": (DICOM, '    first = ds.get("PixelPaddingValue")\n', "    first = None\n"),
    "modality": (DICOM, "    if modality and modality not in RADIOGRAPHS:\n", "    if None:\n"),
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
    "excel_sep": (TABLES, "    if match := re.fullmatch(", "    if match := None and re.fullmatch("),
    "not_text": (TABLES, "    except UnicodeError as error:\n", "    except ZeroDivisionError as error:\n"),
    "nul_bytes": (TABLES, '    if "\\0" in text:\n', "    if None:\n"),
    "open_quote": (TABLES, "        except csv.Error as error:\n", "        except ZeroDivisionError as error:\n"),
    "no_header": (TABLES, "    if header is None:\n        raise", "    if header is None and None:\n        raise"),
    "no_table": (TABLES, "        if start.startswith(magic.lower()):\n", "        if None:\n"),
    "as_text": (TABLES, "        rows.append(values)\n", '        rows.append([value.lstrip("0").replace("NA", "") for value in values])\n'),
    "no_label": (LAYOUTS, '        if chosen[role] is None and role in ("path", "label"):\n', "        if None:\n"),
    "tested_patient": (METADATA, '    table.loc[both, ["split", "note"]] = ["aside", "its patient is in the test set"]\n', ""),
    "seen_groups": (SPLITS, '    if "seen" not in cohort:\n', "    if True:\n"),
    "too_few": (SPLITS, "    if len(counts) >= 2 and few.empty:\n        return\n", "    if True:\n        return\n"),
    "every_side": (SPLITS, "        if not missing:\n", "        if True:\n"),
    "by_group": (SPLITS, '    split.loc[rows.index, "split"] = np.where(rows["group"].map(part) == 1, ', '    split.loc[rows.index, "split"] = np.where(np.arange(len(rows)) % 2 == 1, '),
    "fitting_batch": (LOADERS, "    if n <= batch_size:\n", "    if None:\n"),
    "last_batch": (LOADERS, "        if last >= max(2, size / 4):\n", "        if True:\n"),
    "empty_side": (LOADERS, "    if faults:\n        hint", "    if None:\n        hint"),
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
    "flushed": (FILES, '        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=PART_SUFFIX)\n', "        part = str(path)\n        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)\n"),
    "claimed": (FILES, "        if not _lock(file):\n", "        if None:\n"),
    "oom_end": (FITTING, "            if halvings == HALVINGS or smaller < 2 or num_distrib() > 1:\n", "            if smaller < 0:\n"),
    "oom_record": (FITTING, "    return halved[-1] if halved else asked\n", "    return asked\n"),
    "worker_words": (RADIOGRAPHS, "        except _ImageErrorInWorker as error:", "        except ZeroDivisionError as error:"),
    "shm": ("covid_fastai/data/hardware.py", "    return int(min(wanted, room))\n", "    return wanted\n"),
    "utc": (FILES, '    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")\n', '    return datetime.now().strftime("%Y-%m-%dT%H:%M:%SZ")\n'),
    "torn_line": (RUNS, "        except ValueError:\n            event = None\n", "        except ZeroDivisionError:\n            event = None\n"),
    "same_views": (FEATURES, "            with no_random(seed, reproducible=False), torch.no_grad():\n", "            with torch.no_grad():\n"),
    "read_only": (FILES, '    except OSError as error:\n        raise ResourceError(\n            f"{out} cannot be made', '    except ZeroDivisionError as error:\n        raise ResourceError(\n            f"{out} cannot be made'),
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
    "pickle_named": (CONFIG, '        beside = sorted(other.name for other in path.parent.glob("*.pkl")) if path.parent.is_dir() else []\n', "        beside = []\n"),
    "irregular": (CONFIG, "    if not path.is_file():", "    if None:"),
    "own_hash": (MODEL_WEIGHTS, '    if facts.get("sha256") != sha256:\n', "    if None:\n"),
    "arch_name": (CONFIG, 'pattern=r"^(timm/)?[A-Za-z0-9_.\\-]+$")]  # then', 'pattern=r"")]  # then'),
    "classes_match": (CONFIG, "        if not len(self.golden.probabilities) == len(self.golden.logits) == len(self.classes):\n", "        if None:\n"),
    "no_json": (CONFIG, "    except (ValueError, RecursionError) as error:\n", "    except ZeroDivisionError as error:\n"),
    "config_fields": (CONFIG, "    except ValidationError as error:\n        raise no_model", "    except ZeroDivisionError as error:\n        raise no_model"),
    "newer_format": (CONFIG, '    if raw["format"] > FORMAT:\n', "    if None:\n"),
    "normalised": (LEARNER, "        if not _agree(found, weights):\n", "        if None:\n"),
    "not_received": (WEIGHTS, "        except _NotReceived as error:\n", "        except ZeroDivisionError as error:\n"),
    "largest_download": (WEIGHTS, "                if size > LARGEST_DOWNLOAD or time.monotonic() > deadline:\n", "                if None:\n"),
    "other_host": ("tests/conftest.py", '    monkeypatch.setattr(socket.socket, "connect", connect_here)\n', ""),
    "onnx_there": (PREDICTOR, "        content = read_verified(folder / ONNX_FILE, self.config.onnx.sha256)\n", "        content = (folder / ONNX_FILE).read_bytes()\n"),
    "hub_files": (HUB, '"allow_patterns": list(HUB_FILES)}\n', '"allow_patterns": None}\n'),
    "hub_cache": (HUB, "        except _unreachable():\n            folder", "        except ZeroDivisionError:\n            folder"),
    "no_pickle": (BUNDLE, "import shutil\n", "import pickle\nimport shutil\n"),
    "no_archive": (BUNDLE, "import shutil\n", "import shutil\n\n\ndef unpack(archive):\n    archive.extractall()\n\n\n"),
    # page
    "csp": ("covid_fastai/app/gate.py", "default-src 'self'", "default-src *"),
    "nosniff": ("covid_fastai/app/gate.py", '    "X-Content-Type-Options": "nosniff",\n', ""),
    "header": (GUARD, "for note, text in HEADER.items() if note in notes]", "for note, text in HEADER.items() if None]"),
    "fold_text": ("covid_fastai/data/tasks.py", "str(text).casefold())", "str(text))"),
    "rlimit": (ANSWERING, "        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))\n", "        pass\n"),
    "fsize": (ANSWERING, "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n", ""),
    "held_back": (ANSWERING, 'HOLDS_BACK = {"inverted", "turned", "unlike"}', "HOLDS_BACK = set()"),
    "file_bytes": (UPLOADS, "            if self._part_bytes > self._file_bytes:\n", "            if None:\n"),
    "request_bytes": (UPLOADS, "        if arrived > limits.request_bytes:\n", "        if None:\n"),
    "many_files": (UPLOADS, "max_files=limits.files, max_fields=8", "max_files=10**6, max_fields=10**6"),
    "page_pixels": (ANSWERING, "    if width * height > max_pixels:\n", "    if None:\n"),
    "lost_worker": (WORKERS, "        except _Lost as lost:\n            self._drop(worker)\n", "        except ZeroDivisionError as lost:\n            self._drop(worker)\n"),
    "last_name": (UPLOADS, '.rsplit("/", 1)[-1]\n', "\n"),
    "tokens": (UPLOADS, "        if tokens < 1:\n", "        if None:\n"),
    "places": (UPLOADS, "        if self._inside.total() >= self._places:\n", "        if None:\n"),
    "patience": (PATIENCE, "        self._hang_up = self.loop.call_later(self.head_seconds, self.transport.close)\n", "        pass\n"),
    "host": (GATE, "        if len(given) != 1 or _hostname(given[0]) not in self._hosts:\n", "        if None:\n"),
    "origin": (GATE, '        if site not in {"same-origin", "none"} or (origin is not None and _netloc(origin) != given[0].lower()):\n', "        if None:\n"),
    "named_host": (GATE, "    if not list(allow_host) and not _is_local(host):\n", "    if None:\n"),
    "telemetry": (BUNDLE, "import shutil\n", "import shutil\n\nimport onnxruntime\n"),
    "in_memory": (UPLOADS, "        self.spool_max_size = limits.request_bytes + 1\n", "        self.spool_max_size = 1\n"),
    "hidden_error": (GATE, '                text = f"Something went wrong here. Tell the keeper of this server the number {number}."\n', "                text = str(error)\n"),
    "form": (UPLOADS, '    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):\n', "    if None:\n"),
    "killed_file": (BATCH_WORKERS, "            except BrokenProcessPool:\n", "            except ZeroDivisionError:\n"),
    "part_name": (BATCH, "        facts.append([path, *((status.st_size, status.st_mtime_ns) if status else ())])\n", "        facts.append([path])\n"),
    # privacy, honesty
    "cache_private": (CACHE, "            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)\n", "            self.folder.mkdir(parents=True, exist_ok=True)\n"),
    "data_name": (DOCUMENTS, '    return Path(data).name if data else "rows"\n', "    return str(data)\n"),
    "two_sides": (REMARKS, "    if both.any():\n", "    if None:\n"),
    "own_source": (REMARKS, "        if apart >= OWN_SHARE:\n", "        if None:\n"),
    "touches": (REMARKS, "    if touches > 1:\n", "    if None:\n"),
}  # fmt: skip
