"""Decodes the test sets once more in the conditions of data/conditions.py."""

import logging

from twopass_kd.config.load import reported_systems
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.conditions import CLEAN, CONDITIONS, load_audio
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.scoring.wer import corpus_wer
from twopass_kd.search.decode_set import decode_set, first_pass_tokens, second_pass_tokens, transcripts
from twopass_kd.search.methods import own_searches
from twopass_kd.search.word_times import WordTimes


def decode_conditions(
    cfg: Config,
    system: str,
    model: TwoPassModel,
    data: AsrDataModule,
    tokenizer: Tokenizer,
    weight: float,
    length_reward: float,
    said: dict[str, WordTimes],
) -> dict[str, dict[str, dict[str, float]]]:
    """WER in percent by test set, condition and pass.

    The first condition, `clean`, is of the same utterances as they are. Only of systems whose last phase trains the
    encoder too: the others are stages on the way to these. Nothing where the audio is not there, as it need not be
    where features were computed elsewhere.

    Args:
      weight, length_reward: of the second pass.
      said: when words are said, by set.
    """
    phase = cfg.phases.get(reported_systems(cfg)[system])
    if cfg.decode.condition_seconds == 0 or (phase is not None and "encoder" not in phase.train):
        return {}
    wer: dict[str, dict[str, dict[str, float]]] = {}
    for part in cfg.corpus.test_parts:
        cuts = data.condition_cuts(part)
        try:
            load_audio(cuts[0])
        except ValueError as e:
            logging.warning("%s is not heard in other conditions: %s", part, e)
            continue
        wer[part] = {}
        spans = {cut_id: [(word.start, word.end) for word in words] for cut_id, words in said[part].items()}
        for condition in [CLEAN, *CONDITIONS]:
            if condition.noise == "babble" and len(cuts) == 1:
                logging.warning("%s has one utterance, so there is no babble of others to hear it in", part)
                continue
            loader = data.condition_loader(part, condition, spans)
            result = decode_set(
                model, loader, f"{part}, {condition.name}", own_searches(cfg), tokenizer, ["first_pass"]
            )
            passes = {name: first_pass_tokens(result, name) for name in own_searches(cfg)}
            passes["two_pass"] = second_pass_tokens(result, "first_pass", weight, length_reward)
            wer[part][condition.name] = {
                name: corpus_wer(transcripts(result, tokens, tokenizer)).wer for name, tokens in passes.items()
            }
            logging.info("%s, %s, %s: WER %.2f%%", system, part, condition.name, wer[part][condition.name]["two_pass"])
    return wer
