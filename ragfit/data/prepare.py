"""`prepare`: the one way from a configuration to the rows that are trained on.

The notebooks, the command line and the trainer all take its result, so what a notebook shows is what is trained on.
"""

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

from ragfit.config.explain import explained
from ragfit.config.paths import find_existing, find_file
from ragfit.data.cache import get_or_prepare, key_of
from ragfit.data.findings import KINDS, Collected, became
from ragfit.data.fit import fit
from ragfit.data.mask import Encoder, to_arrow
from ragfit.data.prompt import Renderer, RowRefused
from ragfit.data.report import Cut, Part, Prepared, Report
from ragfit.data.rows import SUFFIXES, choose, open_rows, read_text, split, text_of
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError, DataError, PromptError

# Rows that are tokenized at once: enough for all cores, few enough that the offsets of long rows need no gigabytes.
_BATCH_ROWS, _BATCH_CHARACTERS = 256, 2**20
_PIECE = 64  # above so many characters per token of model.max_sequence_len, only a prefix is tokenized to decide
_AHEAD = 2  # batches that are tokenized while others are rendered and labelled


@explained("Preparing the rows")
def prepare(cfg, tokenizer=None, cache=True):
    """Read, render, tokenize and label the rows that a configuration names.

    Needs no torch where the tokenizer can be loaded without it. The same rows under the same settings are prepared
    once, and come from the cache then (see `ragfit.data.cache`).

    Args:
        cfg: a configuration of `ragfit.load_config`.
        tokenizer: a `transformers` tokenizer; loaded from `cfg.model` where None.
        cache: false to prepare anew and keep nothing.

    Returns:
        Prepared

    Raises:
        RagfitError: with the file and line, or the key, and what to do.
    """
    _require(cfg)
    instruction = ""
    if cfg.instruction:
        instruction = read_text(find_file(cfg.instruction, "instruction"), "instruction")
    template = None
    if cfg.template:
        template = read_text(find_file(cfg.template, "template"), "template")
    rows, train, dev_rows, dev = _choose_rows(cfg)
    from ragfit.models.tokenizer import load_tokenizer, stop_token_ids

    name, revision = cfg.model.get("model_name_or_path"), cfg.model.get("revision")
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision, bool(cfg.model.get("trust_remote_code")))
        stop_ids = stop_token_ids(name, revision)
    else:  # nothing is asked of the hub
        stop_ids = stop_token_ids(name, revision) if find_existing(name, "model.model_name_or_path") else []
    renderer = Renderer(
        tokenizer,
        instruction,
        template,
        cfg.model.get("instruction_in_prompt"),
        cfg.model.get("completion_start"),
        stop_ids,
    )
    sources = {"train": (rows, train)} | ({} if dev is None else {"dev": (dev_rows, dev)})

    train_set, dev_set, report = get_or_prepare(
        lambda: key_of(cfg, renderer, list(sources.values())),
        lambda folder: _prepare(cfg, renderer, sources, folder),
        [source for source, _ in sources.values()],
        cache,
    )
    report.data_file = str(cfg.data_file)
    if changed := [name for name, (source, _) in sources.items() if not source.unchanged()]:
        found = Collected()
        found.everywhere("data file changed", f"the rows for {' and '.join(changed)}")
        report.findings = found.findings() + report.findings  # not in the cache: it is said of this run alone
    return Prepared(
        train=train_set,
        dev=dev_set,
        report=report,
        tokenizer=tokenizer,
        renderer=renderer,
        encoder=Encoder(tokenizer, renderer.bos),
        instruction=instruction,
        cfg=cfg,
        sources={"train": rows, "dev": dev_rows},
    )


def _prepare(cfg, renderer, sources, folder):
    """Write the Arrow files of the parts and report on them."""
    work, parts = Preparer(cfg, renderer), {"dev": Part()}
    for name, (rows, positions) in sources.items():
        parts[name] = part = work.run(name, rows, positions, folder / f"{name}.arrow")
        if name == "train" and not part.kept:
            reasons = ", ".join(f"{len(numbers)} {reason}" for reason, numbers in part.dropped.items())
            advice = " ".join(KINDS[f"dropped: {reason}"][2] for reason in part.dropped)
            raise DataError(f"None of the {part.rows} rows of {cfg.data_file} can be trained on ({reasons}). {advice}")
    return Report(
        data_file=str(cfg.data_file),
        in_file=len(sources["train"][0]),
        **parts,
        first_labels=work.texts_of_ids(work.first),
        last_labels=work.texts_of_ids(work.last),
        last_ids=sorted(work.last),
        boundary=work.boundary,
        findings=work.findings(),
    )


def _require(cfg):
    for key, example in (("data_file", "asqa-prefix-train.jsonl"), ("input_key", "prompt"), ("output_key", "answers")):
        if not cfg.get(key):
            raise ConfigError(f"{key} is not set. Set it, for instance {key}={example}.")


def _choose_rows(cfg):
    on_hub = not _looks_like_a_file(cfg.data_file) and not find_existing(cfg.data_file, "data_file")
    rows = open_rows(None if on_hub else find_file(cfg.data_file, "data_file"), cfg.data_file)
    if not len(rows):
        raise DataError(f"{cfg.data_file} has no rows. Check data_file.")
    chosen = choose(len(rows), cfg.shuffle, cfg.limit)
    share = cfg.get("dev_split")
    if share is None:
        return rows, chosen, None, None
    if isinstance(share, str):
        dev_rows = open_rows(find_file(share, "dev_split"), share)
        if not len(dev_rows):
            raise DataError(f"{share} has no rows. Check dev_split.")
        return rows, chosen, dev_rows, list(range(len(dev_rows)))
    train, dev = split(chosen, share, cfg.shuffle)
    return rows, train, rows, dev


def _looks_like_a_file(name):
    return str(name).endswith(SUFFIXES) or str(name).startswith((".", "/", "~")) or "/" not in str(name)


class Preparer:
    """Prepares parts and gathers what is found on the way."""

    def __init__(self, cfg, renderer):
        self.cfg, self.renderer = cfg, renderer
        self.tokenizer = renderer.tokenizer
        self.encoder = Encoder(self.tokenizer, renderer.bos)
        self.limit = cfg.model.get("max_sequence_len")
        self.policy = cfg.model.get("over_length") or "drop"
        self.found = Collected()
        self.first, self.last, self.boundary = Counter(), Counter(), Counter()
        self.seen, self.queries = {}, {}
        self.specials = renderer.special_tokens()
        # A turn ends with a token of its own, not with text that looks like one.
        added = self.tokenizer.added_tokens_decoder
        self.ends = {self.tokenizer.eos_token_id, *(number for number in added if str(added[number]) in renderer.stops)}
        self._template_findings()

    def _template_findings(self):
        renderer = self.renderer
        if renderer.system == "dropped":
            self.found.everywhere("instruction not in prompt")
        if renderer.dated:
            self.found.everywhere("dated template")
        hits = self.specials.findall(renderer.instruction) if self.specials else []
        if hits:
            self.found.everywhere("special tokens in data", f"{hits[0]!r} in the instruction")

    def run(self, part, rows, positions, path):
        """Prepare one part into an Arrow file.

        Returns:
            Part
        """
        import pyarrow as pa

        result = Part(rows=len(positions))
        ids_type = pa.list_(pa.int32())
        schema = pa.schema([("input_ids", ids_type), ("labels", ids_type)])
        # A bar for a second of work would only be noise in a notebook.
        progress = progress_bar(
            total=len(positions), desc=f"preparing {part}", unit="row", disable=len(positions) < 2000
        )
        with (
            progress,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
            ThreadPoolExecutor(_AHEAD) as ahead,
        ):

            def finish(texts, rendered, encoded):
                kept = self._label(part, texts, rendered, encoded.result(), result)
                if kept:
                    writer.write_batch(pa.record_batch(list(to_arrow(kept)), schema=schema))
                progress.update(len(result.kept) + sum(map(len, result.dropped.values())) - progress.n)

            # While batches are tokenized, which needs no Python, the next one is read and rendered.
            numbers, waiting = iter(positions), deque()
            while batch := self._render(part, rows, numbers, result):
                waiting.append((*batch, ahead.submit(self.encoder.encode, batch[1])))
                if len(waiting) > _AHEAD:
                    finish(*waiting.popleft())
            while waiting:
                finish(*waiting.popleft())
        return result

    def prepare_row(self, part, rows, number, result):
        """Prepare one row; a list with its `Masked`, or an empty one where it is dropped."""
        batch = self._render(part, rows, iter([number]), result)
        return self._label(part, *batch, self.encoder.encode(batch[1]), result) if batch else []

    def _render(self, part, rows, numbers, result):
        """Read and render rows, from an iterator of their numbers, until they fill a batch; None where there are none left."""
        texts, rendered, size = [], [], 0
        for number in numbers:
            row, where = rows[number], rows.where(number)
            query = text_of(row, self.cfg.input_key, where, "input_key")
            output = text_of(row, self.cfg.output_key, where, "output_key")
            query, short, estimate = self._shorten(query, output)
            if estimate:
                result.rejected_lengths.append(estimate)
                self._drop("dropped: too long", part, number, result)
                continue
            try:
                rendered.append(self.renderer.render(query, output))
            except RowRefused as error:
                self._drop(f"dropped: {error.reason}", part, number, result, f"{where}: {error}")
                continue
            except PromptError as error:
                raise PromptError(f"{where}: {error}") from error
            texts.append((number, query, output, short))
            size += len(rendered[-1].text)
            if len(texts) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                break
        return (texts, rendered) if texts else None

    def _label(self, part, texts, rendered, encoded, result):
        """What is kept of a batch of tokenized rows."""
        kept = []
        for (number, query, output, short), row, masked in zip(texts, rendered, encoded, strict=True):
            if short or (self.limit and len(masked.input_ids) > self.limit):
                row, masked = self._fit(part, number, query, output, short, row, masked, result)
            if masked is None:
                continue
            if masked.end <= masked.start:
                self._drop("dropped: no loss", part, number, result)
                continue
            self._collect_findings(part, number, query, output, row, masked)
            result.kept.append(number)
            result.lengths.append((masked.start + len(masked.input_ids) - masked.end, masked.end - masked.start))
            kept.append(masked)
        return kept

    def _shorten(self, query, output):
        """A row of megabytes, which would take minutes and gigabytes to tokenize, judged by a piece of it.

        Returns:
            (query, cut, estimate): the prompt, cut to a piece that is too long still where `over_length` cuts; the `Cut`
            that made it one, or None; and about how many tokens a row has that is to be dropped, or 0.
        """
        if not self.limit or len(query) + len(output) <= _PIECE * self.limit:
            return query, None, 0
        size = _PIECE * self.limit
        long_query, cut = 0, None
        if len(query) > size:
            piece = query[-size:] if self.policy == "cut_start" else query[:size]
            long_query = self._tokens_of(query, piece)
            if long_query and self.policy != "drop":
                start = len(query) - size if self.policy == "cut_start" else 0
                cut = Cut(start, start + size, len(query))
                query, long_query = piece, 0
        return query, cut, long_query or (self._tokens_of(output, output[:size]) if len(output) > size else 0)

    def _tokens_of(self, text, piece):
        """About how many tokens a text has, where its piece has twice the limit already; else 0, for it may fit."""
        count = len(self.encoder.spans(piece)[0])
        return count * len(text) // len(piece) if count > 2 * self.limit else 0

    def _drop(self, kind, part, number, result, detail=""):
        result.dropped.setdefault(kind.removeprefix("dropped: "), []).append(number)
        self.found.add(kind, part, number, detail)

    def _fit(self, part, number, query, output, short, row, masked, result):
        """Drop an over-long row, or cut its prompt until it fits."""
        cut = None
        if self.policy != "drop":
            cut, row, masked = fit(self.renderer, self.encoder, query, output, row, masked, self.limit, self.policy)
        if cut is None:
            result.rejected_lengths.append(len(masked.input_ids))
            self._drop("dropped: too long", part, number, result)
            return row, None
        if short:
            cut = Cut(short.start + cut.start, short.start + cut.stop, short.length)
        result.cut[number] = cut
        self.found.add("cut", part, number)
        return row, masked

    def _collect_findings(self, part, number, query, output, row, masked):
        ids, found = masked.input_ids, self.found
        self.first[ids[masked.start]] += 1
        self.last[ids[masked.end - 1]] += 1
        if masked.boundary:
            left, right = masked.boundary
            self.boundary[row.text[left:right]] += 1
            # A marker token that swallows the template's own white space takes nothing from the output.
            if right > row.output[0]:
                taken = row.text[row.output[0] : right].strip()
                kind = "first word without loss" if taken else "boundary token"
                found.add(kind, part, number, f"{row.text[left:right]!r}")
        if not row.matches:
            found.add("prompt mismatch", part, number)
        if row.changed:
            found.add("output changed by the template", part, number, became(*row.changed))
        if self.renderer.marker and not row.marker:
            found.add("marker not before the output", part, number)
        if row.extra:
            found.add("other text has loss", part, number, f"{row.extra[:40]!r}")
        if not output.strip():
            found.add("empty output", part, number)
        if ids[masked.end - 1] not in self.ends:
            found.add("no end of turn", part, number)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            found.add("double BOS", part, number)
        hits = self.specials.search(query) or self.specials.search(output) if self.specials else None
        if hits:
            found.add("special tokens in data", part, number, f"{hits.group()!r}")
        key = hash((query, output))
        if part == "train":
            self.queries.setdefault(hash(query), number)
            if key in self.seen:
                found.add("duplicate rows", part, number)
            self.seen[key] = number
        elif hash(query) in self.queries:
            found.add("row in train and dev", part, number)

    def texts_of_ids(self, counter):
        """Token ids as their texts."""
        texts = Counter()
        for token, count in counter.most_common():  # tokens that are part of a character share the text "\ufffd"
            texts[self.tokenizer.decode([token], clean_up_tokenization_spaces=False)] += count
        return texts

    def findings(self):
        return self.found.findings()
