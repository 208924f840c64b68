"""Over-long rows, cut until they fit."""

from ragfit.data.report import Cut
from ragfit.errors import PromptError


def fit(renderer, encoder, query, output, row, masked, limit, policy):
    """Cut a row's prompt from its start or end until the row has at most `limit` tokens.

    Only the row's own prompt is cut: the template's text, the instruction and the completion stay whole.

    Returns:
        (Cut or None, Rendered, Masked): None where the rest alone is too long.
    """
    length = len(query)
    start, stop = 0, length
    whole = masked
    for _ in range(20):
        over = len(masked.input_ids) - limit
        if over <= 0:
            return Cut(start, stop, length), row, masked
        if row.user is None or start >= stop:
            break
        # The tokens of the prompt that must go end (or begin) at these characters.
        ids, spans = encoder.spans(row.text)
        if spans is None:
            drop = max(1, (stop - start) * over // max(len(ids), 1))
        else:
            inside = [span for span in spans if span[0] >= row.user[0] and span[1] <= row.user[1] and span[1] > span[0]]
            if len(inside) <= over:
                drop = stop - start
            elif policy == "cut_end":
                drop = row.user[1] - inside[-over][0]
            else:
                drop = inside[over][0] - row.user[0]
        if policy == "cut_end":
            stop -= max(drop, 1)
        else:
            start += max(drop, 1)
        start, stop = min(start, length), max(stop, 0)
        try:
            row = renderer.render(query[start:stop], output)
        except PromptError:
            break  # what is left has no place for the completion: the marker stood in what was cut
        masked = encoder.encode([row])[0]
    return None, row, whole
