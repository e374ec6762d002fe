"""The teacher: checked against its student with both sides named, and frozen."""

import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny import PIECES, TINY_CONF, lively, random_batch, save_tiny_checkpoint, tiny_model
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import EXTERNAL_TEACHER, ConfigError, ExternalTeacherConfig
from twopass_kd.export.torchscript import export_torchscript
from twopass_kd.models.checkpoint import build_model
from twopass_kd.teachers.check_teacher import check_sizes, check_teacher, without_attention_kd
from twopass_kd.teachers.load_teacher import load_external_teacher, load_teacher, open_teacher
from twopass_kd.training.objective import Objective, match_frames

MINI = Path(__file__).parents[3] / "egs/librispeech/twopass_kd/conf/mini.yaml"
VOCAB_SIZE = len(PIECES)
TOKENS = SimpleNamespace(pieces=PIECES, vocab_size=VOCAB_SIZE)  # of a Tokenizer, what is compared


def tiny_config(*overrides):
    return load_config(TINY_CONF, [f"tokens.vocab_size={VOCAB_SIZE}", *overrides])


@pytest.fixture()
def saved(tmp_path):
    """A teacher that was never trained in its attention decoder, and its path."""
    path = tmp_path / "final.pt"
    return save_tiny_checkpoint(path, phase="teacher/las", second_pass=False), path


def test_teacher_is_rebuilt_from_its_checkpoint_and_frozen(saved):
    model, path = saved
    teacher = load_teacher(path)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, teacher.model.state_dict()[name])


@pytest.mark.parametrize(
    "overrides, pieces, says",
    [
        ([], [*PIECES[:-1], "0"], "token 29 is 'Z' there and '0' here"),
        ([], PIECES[:-1], "has 30 tokens, this lang_dir 29"),
        (
            ["models.student.encoder.subsampling_factor=4", "models.teacher.encoder.subsampling_factor=4"],
            PIECES,
            "6, the student 4",
        ),
        (["features.num_mel_bins=40"], PIECES, "has 80, the student 40"),
        (["phases.student/rnnt_kd.loss_scales.attention_kd=1"], PIECES, "never trained in attention_decoder"),
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error_naming_both_sides(saved, overrides, pieces, says):
    cfg = tiny_config(*overrides)
    student, phase = build_model(cfg, "student", VOCAB_SIZE), cfg.phases["student/rnnt_kd"]
    with pytest.raises(ConfigError) as e:
        tokens = SimpleNamespace(pieces=pieces, vocab_size=len(pieces))
        check_teacher(load_teacher(saved[1]), student, cfg, phase, tokens)
    assert says in str(e.value)


def test_a_fitting_teacher_passes(saved):
    cfg = tiny_config()
    student = build_model(cfg, "student", VOCAB_SIZE)
    check_teacher(load_teacher(saved[1]), student, cfg, cfg.phases["student/rnnt_kd"], TOKENS)


@pytest.fixture()
def scripted(tmp_path):
    """A teacher's first pass as TorchScript, its tokens beside it, and the config that uses it."""
    cfg = tiny_config()
    torch.manual_seed(0)
    model = lively(build_model(cfg, "teacher", VOCAB_SIZE).eval())
    export_torchscript(model, tmp_path / "cpu_jit.pt")
    lines = [f"{piece} {i}\n" for i, piece in enumerate([*PIECES, "#0", "#1"])]
    (tmp_path / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    return model, tiny_config(f"external_teacher.path={tmp_path / 'cpu_jit.pt'}")


def test_an_external_teacher_takes_the_place_of_the_configs_own(scripted):
    _, cfg = scripted
    assert {phase.model for phase in cfg.phases.values()} == {"student"}
    names = ("student/rnnt_kd", "student_copy/rnnt", "student_copy/las")
    assert {name: cfg.phases[name].teacher for name in names} == {
        "student/rnnt_kd": EXTERNAL_TEACHER,
        "student_copy/rnnt": EXTERNAL_TEACHER,  # to start from
        "student_copy/las": None,
    }
    phase = cfg.phases["student/rnnt_kd"]
    teacher = open_teacher(cfg, phase, Path("nowhere"), VOCAB_SIZE)
    assert teacher.pieces == PIECES  # without icefall's disambiguation symbols
    assert not any(p.requires_grad for p in teacher.model.parameters())
    check_teacher(teacher, build_model(cfg, "student", VOCAB_SIZE), cfg, phase, TOKENS)


def test_an_external_teacher_of_another_size_frame_rate_or_tokens_is_an_error(scripted):
    model, cfg = scripted
    phase = cfg.phases["student/rnnt_kd"]
    teacher = open_teacher(cfg, phase, Path("nowhere"), VOCAB_SIZE)
    big = tiny_config(f"external_teacher.path={cfg.external_teacher.path}", "models.student.encoder.dim=200")
    with pytest.raises(ConfigError, match="must be at least 50% smaller than the teacher"):
        check_teacher(teacher, build_model(big, "student", VOCAB_SIZE), big, phase, TOKENS)
    fast = tiny_config(
        f"external_teacher.path={cfg.external_teacher.path}", "models.student.encoder.subsampling_factor=4"
    )
    with pytest.raises(ConfigError, match="has 6, the student 4"):
        check_teacher(teacher, build_model(fast, "student", VOCAB_SIZE), fast, phase, TOKENS)
    tokens = Path(cfg.external_teacher.path).with_name("other.txt")
    tokens.write_text("".join(f"{piece} {i}\n" for i, piece in enumerate(reversed(PIECES))), encoding="utf-8")
    other = ExternalTeacherConfig(path=cfg.external_teacher.path, tokens=str(tokens))
    with pytest.raises(ConfigError, match="other tokens"):
        student = build_model(cfg, "student", VOCAB_SIZE)
        check_teacher(load_external_teacher(other, VOCAB_SIZE, 80), student, cfg, phase, TOKENS)


def test_tokens_that_cannot_be_checked_are_said(scripted, caplog):
    path = Path(scripted[1].external_teacher.path)
    path.with_name("tokens.txt").unlink()
    teacher = load_external_teacher(ExternalTeacherConfig(path=str(path)), VOCAB_SIZE, 80)
    assert teacher.pieces is None and "no tokens.txt of 30 tokens near" in caplog.text


def test_tokens_may_hold_other_spaces_and_symbols(scripted):
    path = Path(scripted[1].external_teacher.path)
    pieces = [*PIECES[:-2], "A\u2028B\u00a0", "#1"]
    lines = [f"{piece} {i}\r\n" for i, piece in enumerate([*pieces, "#0", "#1"])]
    path.with_name("tokens.txt").write_bytes("".join(lines[:-1]).encode())
    for tokens in (None, str(path.with_name("tokens.txt"))):
        external = ExternalTeacherConfig(path=str(path), tokens=tokens)
        assert load_external_teacher(external, VOCAB_SIZE, 80).pieces == pieces


def test_tokens_that_cannot_be_read_are_named(scripted, tmp_path, caplog):
    path = Path(scripted[1].external_teacher.path)
    (tmp_path / "latin1.txt").write_bytes(b"<blk> 0\nCAF\xc9 1\n")
    for tokens, says in ((tmp_path / "latin1.txt", "line 2: must be UTF-8 text"), (tmp_path / "no", "cannot be read")):
        external = ExternalTeacherConfig(path=str(path), tokens=str(tokens))
        with pytest.raises(ConfigError, match=rf"`external_teacher.tokens` \({tokens}\).*{says}"):
            load_external_teacher(external, VOCAB_SIZE, 80)
    (tmp_path / "latin1.txt").rename(path.with_name("tokens.txt"))  # found by chance: no error
    assert load_external_teacher(ExternalTeacherConfig(path=str(path)), VOCAB_SIZE, 80).pieces is None
    assert "not taken for the teacher's tokens" in caplog.text


def test_tokens_are_found_beside_a_link(scripted, tmp_path, caplog):
    path = Path(scripted[1].external_teacher.path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.pt").symlink_to(path.rename(tmp_path / "blob"))
    path.with_name("tokens.txt").rename(elsewhere / "tokens.txt")
    teacher = load_external_teacher(ExternalTeacherConfig(path=str(elsewhere / "linked.pt")), VOCAB_SIZE, 80)
    assert teacher.pieces == PIECES


@pytest.mark.parametrize("external, says", [
    ("missing.pt", "must be a file"),
    ("text.pt", "not a checkpoint.*external_teacher.recipe="),
    ("pretrained.pt", "external_teacher.recipe="),
    ("pointer.pt", r"`external_teacher.path` \(.*pointer.pt\) is a Git LFS pointer.*git lfs pull"),
    ("page.pt", r"`external_teacher.path` \(.*page.pt\) is a web page.*download the file itself"),
    ("empty.pt", r"`external_teacher.path` \(.*empty.pt\) is empty"),
    (".", "must be a file"),
    ("zip.pt", "not a checkpoint"),
    ("broken.pt", "is TorchScript that torch .* cannot read .*export it with this torch or an older one"),
])  # fmt: skip
def test_an_external_teacher_that_is_none_is_an_error(tmp_path, external, says):
    (tmp_path / "text.pt").write_text("no model")
    torch.save({"model": {}}, tmp_path / "pretrained.pt")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>\n<html>Not found</html>\n")
    (tmp_path / "empty.pt").touch()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("pretrained.pt", b"weights")
    with zipfile.ZipFile(tmp_path / "broken.pt", "w") as archive:
        archive.writestr("broken/code/x.py", "of the future")
    with pytest.raises(ConfigError, match=says):
        load_external_teacher(ExternalTeacherConfig(path=str(tmp_path / external)), VOCAB_SIZE, 80)


def test_las_learns_alone_where_the_teacher_has_no_attention_decoder(scripted):
    _, cfg = scripted
    phase = cfg.phases["student/las_kd"]
    teacher = open_teacher(cfg, phase, Path("nowhere"), VOCAB_SIZE)
    assert without_attention_kd(phase, teacher) == {"attention": 1.0}
    phase.loss_scales = {"attention_kd": 1.0}
    first, student = cfg.phases["student/rnnt_kd"], build_model(cfg, "student", VOCAB_SIZE)
    with pytest.raises(ConfigError, match="`phases.student/las_kd.loss_scales` must have `attention`"):
        check_teacher(teacher, student, cfg, first, TOKENS)  # when the first of its phases begins


def test_las_kd_stays_where_an_external_checkpoint_of_ours_has_an_attention_decoder(tmp_path):
    save_tiny_checkpoint(tmp_path / "final.pt", phase="teacher/las")
    cfg = tiny_config(f"external_teacher.path={tmp_path / 'final.pt'}")
    phase = cfg.phases["student/las_kd"]
    teacher = open_teacher(cfg, phase, Path("nowhere"), VOCAB_SIZE)
    assert without_attention_kd(phase, teacher) == phase.loss_scales and phase.loss_scales["attention_kd"] > 0
    check_teacher(teacher, build_model(cfg, "student", VOCAB_SIZE), cfg, phase, TOKENS)


def test_match_frames_repeats_the_ends_of_each_utterance():
    out = torch.arange(5.0).reshape(1, 5, 1).repeat(2, 1, 1)
    lens = torch.tensor([5, 3])
    assert match_frames(out, lens, 5, 0)[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]
    assert match_frames(out, lens, 5, 2)[:, :, 0].tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 1, 2]]
    assert match_frames(out, lens, 5, -1)[:, :, 0].tolist() == [[1, 2, 3, 4, 4], [1, 2, 2, 2, 2]]
    assert match_frames(out, lens, 6, 0)[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 4], [0, 1, 2, 2, 2, 2]]
    assert match_frames(out, lens, 4, 0)[:, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 2]]
    with pytest.raises(ValueError, match="or one more or less"):
        match_frames(out, lens, 7, 0)


@pytest.mark.parametrize("frame_shift", [-2, 0, 2])
@pytest.mark.parametrize("teacher_frames", [-1, 1])
def test_kd_from_a_teacher_with_a_frame_more_or_less_does_not_depend_on_the_batch(frame_shift, teacher_frames):
    student, teacher = tiny_model(seed=1), tiny_model(seed=2)
    teacher.encoder = _OtherLengths(teacher.encoder, teacher_frames)
    cfg = load_config(TINY_CONF)
    cfg.kd.frame_shift = frame_shift
    scales = {"simple": 1.0, "transducer_kd": 1.0, "attention_kd": 1.0}

    def terms(batch):
        return Objective(student, scales, cfg.loss, cfg.kd, 1, 1, teacher=teacher.requires_grad_(False))(batch).terms

    batch = random_batch(frames=(60, 44), symbols=(5, 4))
    together, alone = terms(batch), terms(second_utterance(batch))
    for name in ("transducer_kd", "attention_kd"):
        torch.testing.assert_close(alone[name][0], together[name][1], rtol=1e-4, atol=1e-4)


def second_utterance(batch):
    """It without padding and without the first."""
    return replace(
        batch,
        feature=batch.feature[1:, : batch.feature_lens[1]],
        feature_lens=batch.feature_lens[1:],
        y=batch.y[1:, : batch.y_lens[1]],
        y_lens=batch.y_lens[1:],
        cuts=batch.cuts[1:],
    )


class _OtherLengths(torch.nn.Module):
    """Leaves out the last frame of each utterance, or says one twice more."""

    def __init__(self, encoder, frames):
        super().__init__()
        self.encoder, self.frames = encoder, frames

    def forward(self, x, x_lens):
        out, lens, states = self.encoder(x, x_lens)
        out = torch.cat([out, out.new_full((len(out), 1, out.size(2)), 9.0)], dim=1)  # padding is any number
        lens = lens + self.frames
        if self.frames > 0:
            rows = torch.arange(len(out))
            out[rows, lens - 1] = out[rows, lens - 2]
        return out[:, : int(lens.max())], lens, states


def test_kd_is_zero_at_the_shift_by_which_the_teacher_is_early():
    student, teacher = tiny_model(), tiny_model()
    teacher.encoder = _Early(student.encoder, frames=2)
    batch = random_batch(frames=(60, 60), symbols=(5, 4))
    cfg = load_config(TINY_CONF)
    values = {}
    for shift in (0, 1, 2, 3):
        cfg.kd.frame_shift = shift
        scales = {"simple": 1.0, "transducer_kd": 1.0}
        objective = Objective(student, scales, cfg.loss, cfg.kd, 1, 1, teacher=teacher.requires_grad_(False))
        values[shift] = float(objective(batch).terms["transducer_kd"].sum())
    assert min(values, key=values.get) == 2
    assert values[2] < 0.25 * min(values[1], values[3])  # not zero: the frames that fill the gap differ


class _Early(torch.nn.Module):
    """Says at frame t what its encoder says at frame t + `frames`."""

    def __init__(self, encoder, frames):
        super().__init__()
        self.encoder, self.frames = encoder, frames

    def forward(self, x, x_lens):
        out, lens, states = self.encoder(x, x_lens)
        return match_frames(out, lens, out.size(1), -self.frames), lens, states


@pytest.mark.parametrize("override, share", [("models.student.encoder.dim=200", "55%"), ("min_reduction=0.8", "80%")])
def test_a_student_that_is_not_small_enough_is_an_error(override, share):
    check_sizes(load_config(MINI), 256)
    with pytest.raises(ConfigError, match=f"must be at least {share} smaller"):
        check_sizes(load_config(MINI, [override]), 256)


TINY_MODEL = (
    "models.tiny={encoder: {subsampling_factor: 6, dim: 96, num_layers: 3}, decoder: {dim: 128}, joiner_dim: 128,"
    " attention_decoder: {dim: 96}}"
)
TINY_PHASE = (
    "phases.tiny/rnnt_kd={stage: 7, model: tiny, teacher: student/deep, train: [encoder, decoder, joiner],"
    " loss_scales: {simple: 1, transducer_kd: 1}, num_epochs: 1, base_lr: 1.0e-3}"
)


def test_each_generation_is_smaller_than_its_teacher_and_small_enough_beside_the_first():
    check_sizes(load_config(MINI, [TINY_MODEL, TINY_PHASE]), 128)  # by 36% than the student, 74% than the teacher
    as_large = ["models.tiny.encoder.dim=128", "models.tiny.attention_decoder.dim=128"]
    with pytest.raises(ConfigError, match=r"`models.tiny` .* must be smaller than student .* it learns"):
        check_sizes(load_config(MINI, [TINY_MODEL, TINY_PHASE, *as_large]), 128)


def test_tokens_named_beside_a_checkpoint_of_ours_are_an_error(saved):
    external = ExternalTeacherConfig(path=str(saved[1]), tokens="other/tokens.txt")
    with pytest.raises(ConfigError, match=r"`external_teacher.tokens` \(other/tokens.txt\) must be left out"):
        load_external_teacher(external, VOCAB_SIZE, 80)
