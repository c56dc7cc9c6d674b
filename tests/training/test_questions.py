"""Questions in words: lengths, ends and padding of answers, the loss slot by slot, learning some by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drivefine_agent.data.recogdrive import ConversationFile, Turn, question_record, write_records
from drivefine_agent.data.sensors import write_image
from drivefine_agent.diffusion.masking import sample_mask_ratios, sample_masks
from drivefine_agent.model.text_tokenizer import END_OF_TEXT, END_OF_TURN, TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import AugmentationConfig, ModelChoice
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.objectives import Instructions, mean_over_examples, text_loss
from drivefine_agent.training.questions import Questions, encode_answer
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.training.tile_cache import ImageSet

COLOURS = {"red": (200, 30, 30), "green": (30, 190, 40), "blue": (30, 40, 210)}
OTHER_QUESTION = "What do you do?"
LENGTHS = (8, 16, 24)
NUM_STEPS = 100


@pytest.fixture(scope="module")
def planner() -> Planner:
    return build_planner(ModelChoice("tiny"), seed=0)


@pytest.fixture(scope="module")
def questions(planner: Planner, tmp_path_factory: pytest.TempPathFactory) -> Questions:
    """Three pictures of one colour each; their answers differ in length, one only the picture tells apart."""
    folder = tmp_path_factory.mktemp("questions")
    records = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        picture = np.broadcast_to(np.array(colour, dtype=np.uint8), (270, 480, 3))
        write_image(folder, f"{name}.jpg", picture)
        answers = (f"{name}", "STOP, LEFT_TURN" if name == "red" else "KEEP")
        turns = [Turn("Which colour?", answers[0]), Turn(OTHER_QUESTION, answers[1])]
        records.append(question_record(number, f"{name}.jpg", turns))
    write_records(folder / "qa.jsonl", records)
    file = ConversationFile(folder / "qa.jsonl", show_progress=False)
    images = ImageSet(file.images, folder, planner.model.config.tiles)
    return Questions(file, images, images, planner.prompts, LENGTHS)


def test_answer_ends_its_turn_and_is_filled_up_to_a_known_length() -> None:
    tokenizer = TextTokenizer.tiny()
    turn, text = tokenizer.id_of(END_OF_TURN), tokenizer.id_of(END_OF_TEXT)
    words = tokenizer.encode("xqz")
    assert len(words) == 3
    ids, is_cut = encode_answer(tokenizer, "xqz", (4, 8))
    assert (ids.tolist(), is_cut) == ([*words, turn], False)
    ids, is_cut = encode_answer(tokenizer, "xqz", (3, 6, 8))
    assert (ids.tolist(), is_cut) == ([*words, turn, text, text], False)
    ids, is_cut = encode_answer(tokenizer, "xqz", (2, 3))
    assert (ids.tolist(), is_cut) == (words, True)


def test_batches_hold_answers_of_one_length_and_one_question_per_line(questions: Questions) -> None:
    rows = np.array([0, 1, 2] * 20)
    batches = questions.batches(rows, None, generator_for(0, "questions", 0))
    lengths = [batch.answer_ids.shape[1] for batch in batches]
    assert lengths == sorted(set(lengths))
    assert len(lengths) > 1
    assert sum(len(batch.answer_ids) for batch in batches) == 60
    tokenizer = questions.prompts.text_tokenizer
    asked = [tokenizer.decode(ids[ids >= 0].tolist()) for batch in batches for ids in batch.context_ids]
    assert 15 < sum(OTHER_QUESTION in text for text in asked) < 45  # both are drawn
    assert not any(OTHER_QUESTION in text and "colour" in text for text in asked)  # the other one is dropped
    for batch in batches:  # images follow their questions
        assert batch.tiles is not None
        for tiles, answer in zip(batch.tiles, batch.answer_ids, strict=True):
            brightest = int(tiles.float().mean(dim=(0, 1, 2)).argmax())
            word = tokenizer.decode(answer.tolist()).split(END_OF_TURN)[0]
            if word in COLOURS:
                assert list(COLOURS)[brightest] == word


def test_images_of_questions_are_never_mirrored(questions: Questions) -> None:
    mirror = AugmentationConfig(mirror_probability=1.0)
    rows = np.arange(3)
    plain = questions.batches(rows, None, generator_for(0, "light", 0))
    same = questions.batches(rows, mirror, generator_for(0, "light", 0))
    for a, b in zip(plain, same, strict=True):
        assert a.tiles is not None
        assert b.tiles is not None
        assert torch.equal(a.tiles, b.tiles)


def test_text_loss_is_the_mean_over_slots_of_their_masked_rows(
    planner: Planner, questions: Questions
) -> None:
    """The same by loops over one row at a time, over a vocabulary without [M]."""
    model, batch = planner.model, questions.batches(np.arange(3))[0]
    answer_ids = Instructions(planner.prompts, "cpu").answer
    loss = text_loss(model, batch, answer_ids, generator_for(0, "masks", 0))

    generator, (size, length) = generator_for(0, "masks", 0), batch.answer_ids.shape
    is_masked = sample_masks(sample_mask_ratios(size, generator), length, generator=generator)
    assert batch.tiles is not None
    assert batch.context_lengths is None  # the same question, three times
    mask, terms = model.config.mask_token_id, []
    for b in range(size):
        visual = model.encode_images(batch.tiles[b : b + 1])
        context = model.backbone.encode_context(model.embed_context(batch.context_ids[b : b + 1], visual))
        prompt = model.backbone.append_instruction(context, model.embeddings(answer_ids)[None])
        target = batch.answer_ids[b] - (batch.answer_ids[b] > mask).long()  # in a vocabulary without [M]
        for hidden_slots in (is_masked[b], ~is_masked[b]):
            tokens = torch.where(hidden_slots, mask, batch.answer_ids[b])
            row = model.embeddings.embed_tokens(tokens) + model.embeddings.context_positions[:length]
            scores = F.linear(
                model.backbone.answer(prompt, row[None, None])[0, 0], model.heads.lm_head.weight
            )
            scores = torch.cat([scores[:, :mask], scores[:, mask + 1 :]], dim=-1)
            terms += F.cross_entropy(scores, target, reduction="none")[hidden_slots].tolist()
    assert len(terms) == size * length
    assert loss.total.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert loss.nll.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_refinement_expert_does_not_answer_in_words(planner: Planner, questions: Questions) -> None:
    batch = questions.batches(np.arange(1))[0]
    prompt = planner.model.prefill(batch.tiles, batch.context_ids, batch.answer_ids[0], expert="refinement")
    with pytest.raises(ValueError, match="need the expert 'generation'"):
        planner.model.text_logits(prompt, batch.answer_ids[:, None])


def test_a_small_model_learns_a_few_answers_by_heart(questions: Questions) -> None:
    """All six pairs: two questions about each of three pictures; the answers depend on both."""
    overrides = {"learned_positions": True, "prompt_wording": "short"}
    planner = build_planner(ModelChoice("debug", overrides), seed=1)
    model = planner.model
    model.train_text_head()
    images = replace(questions.images, spec=model.config.tiles)
    learned = replace(questions, prompts=planner.prompts, images=images, tiles=images[np.arange(3)])
    answer_ids = Instructions(planner.prompts, "cpu").answer
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rows = np.array([0, 1, 2] * 2)
    for step in range(NUM_STEPS):
        batches = learned.batches(rows, None, generator_for(0, "questions", step))
        masks = generator_for(0, "masks", step)
        losses = [text_loss(model, batch, answer_ids, masks) for batch in batches]
        optimizer.zero_grad()
        mean_over_examples(batches, losses).total.backward()
        optimizer.step()
    model.eval()
    pictures = [np.broadcast_to(np.array(c, dtype=np.uint8), (270, 480, 3)) for c in COLOURS.values()]
    for number, picture in enumerate(pictures):
        for pair in learned.file[number].turns:
            ids, _ = encode_answer(planner.text_tokenizer, pair.answer, LENGTHS)
            assert planner.answer([picture], [pair.question], num_slots=len(ids)) == [pair.answer]
