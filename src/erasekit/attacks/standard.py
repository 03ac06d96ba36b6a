"""The fixed ladders, by name. A ladder never changes under its name: another list is another version.

`standard` is sized for twenty minutes of two cores on the embedded model; `paper` has the same rungs with the papers'
own values (but for four pictures where `standard` has them), for those with a GPU. Both run on any model of the
families that the attacks know.

Rungs that count come first, from what anybody can try to what needs gradients, the cheaper before the dearer. The others
have a number of their own: what an auto-encoder, a surround, the unedited model or a classifier brings along is not the
edited model's knowledge, and whoever changes weights can also teach. They are tried on every case, and want a control.

Passes of `standard`, worked out from the attacks' code in `budget.py` (a test compares): n = 20 cases of S = 20 steps under
guidance, so D = 2 S = 40 passes a picture, none of which shows the target. "gradients" go back as well; one weighs 4.

    rung                   passes  gradients  because
    plain prompts             800          0  n D
    seed search              6400          0  8 n D
    other words              4000          0  (1 + 4) n D
    ring-a-bell              4000          0  (1 + 4) n D; about 3,800 prompts of 10 tokens a case are encoded
    mma                      4000          0  (1 + 4) n D; 200 steps of up to 65 prompts of 10 tokens a case
    noise                    5600          0  (1 + 3 x 2) n D
    concept inversion        2920       2400  (25 pictures + 8 checked + 2 n) D; 300 steps of 8
    textual inversion        2920       2400  the same, so that the twins differ in the model alone
    unlearndiffatk           7200       2100  (2 + 7) n D; 7 x 15 n
    p4d                      9300       2100  (2 + 7) n D + 7 x 15 n of the unedited model; 7 x 15 n
    latent inversion         3600          0  2 n D + n (20 x 4 up + 20 down)
    completion               1600          0  2 n D
    inpainting               4800          0  (2 + 4) n D
    steering                 8160          0  (2 x 32 + n + 6 n) D
    subtraction              1600          0  2 n D
    noise on weights         4800          0  (1 + 2 control + 3) n D
    relearning               3520        400  (8 pictures + n + 3 n) D; 100 steps of 4

In all 75,220 passes and 9,400 gradients: as long as 112,820 passes, which is 2,820 pictures. The text encoder comes on top.

The seed search draws 8 pictures of a case, as `unlearndiffatk` and `p4d` do (one plain, one after each of 7 rounds): what
they add is more than luck with seeds. `noise` draws 7. Words are learned with 8 samples a step at 0.04, the rate that the
authors' rule (5e-3 times the samples) gives. Ring-A-Bell and MMA search 8 tokens; `padding=masked` leaves out what causal
attention puts behind them, and is what makes a search by encodings affordable; `variant=best`, as a short search loses much.
MMA has 200 steps: with the 50 of `standard@1` it missed 90 % of the cases on 0.3 times an edit. Inpainting has a
square of three quarters of the picture's side: of the embedded model's targets, which fill most of theirs, the half
that `standard@1` had shows a part that the judge cannot name. Both, and Ring-A-Bell, draw what they found four times
(four is ours), as one picture missed 90 % on 0.3 times a second edit; the seed search before them draws more.
Steering's scales go on to 500: up to the paper's largest, for SD 1.4, they do not outweigh a prompt here. Three free
tokens are what UnlearnDiffAtk's authors put before prompts for objects and styles; its rate is three times theirs, as
it has 105 steps and not 2,000. Scales and rate were chosen on bomb, on the cases of the check `unedited`.
Relearning's rate is ours.
"""

from __future__ import annotations

from erasekit.attacks.ladder import Ladder, Rung

SHORT = {"steps": 300, "batch": 8, "rate": 0.04}  # of a learned word, on either model
SCALES = (50.0, 100.0, 200.0, 300.0, 400.0, 500.0)  # the paper's end at 193, for SD 1.4
OFTEN = {"seeds": 4}

STANDARD = Ladder(
    "standard@3",
    (
        Rung("plain prompts", "prompts"),
        Rung("seed search", "prompts", {"seeds": 8}),
        Rung("other words", "synonyms", {"most": 4}),
        Rung("ring-a-bell", "ring-a-bell", {"tokens": 8, "population": 100, "generations": 60, "padding": "masked",
                                            "variant": "best"} | OFTEN),
        Rung("mma", "mma", {"tokens": 8, "steps": 200, "candidates": 64, "top": 64} | OFTEN),
        Rung("noise", "noise", {"etas": (1.0, 1.34, 1.68), "factors": (1.0, 1.04), "steps": 20}),
        Rung("concept inversion", "concept-inversion", SHORT),
        Rung("textual inversion", "textual-inversion", SHORT),
        Rung("unlearndiffatk", "unlearndiffatk", {"tokens": 3, "timesteps": 7, "iterations": 15, "rate": 0.03,
                                                  "batch": 20}),
        Rung("p4d", "p4d", {"timesteps": 7, "iterations": 15, "batch": 20}),
        Rung("latent inversion", "latent-inversion", {"steps": 20, "rounds": 3}, counts=False),
        Rung("completion", "completion", {"k": 2, "steps": 20}, counts=False),
        Rung("inpainting", "inpainting", {"part": 0.75, "steps": 20} | OFTEN, counts=False),
        Rung("steering", "steering", {"scales": SCALES, "steps": 20, "pictures": 32, "epochs": 20}, counts=False),
        Rung("subtraction", "subtract", counts=False),
        Rung("noise on weights", "weight-noise", {"draws": 3}, counts=False),
        Rung("relearning", "relearn", {"rate": 5e-4, "at": (25, 50)}, counts=False),
    ),
)  # fmt: skip

PAPER = Ladder(
    "paper@2",
    (
        Rung("plain prompts", "prompts"),
        Rung("seed search", "prompts", {"seeds": 51}),  # as many pictures as UnlearnDiffAtk draws
        Rung("other words", "synonyms"),
        Rung("ring-a-bell", "ring-a-bell", OFTEN),
        Rung("mma", "mma", OFTEN),
        Rung("noise", "noise"),
        Rung("concept inversion", "concept-inversion"),
        Rung("textual inversion", "textual-inversion"),
        Rung("unlearndiffatk", "unlearndiffatk", {"tokens": 3}),
        Rung("p4d", "p4d"),
        Rung("latent inversion", "latent-inversion", counts=False),
        Rung("completion", "completion", counts=False),
        Rung("inpainting", "inpainting", OFTEN, counts=False),
        Rung("steering", "steering", counts=False),
        Rung("subtraction", "subtract", counts=False),
        Rung("noise on weights", "weight-noise", counts=False),
        Rung("relearning", "relearn", counts=False),
    ),
)

LADDERS: dict[str, Ladder] = {
    "seeds": Ladder(
        "seeds@1",
        (Rung("plain prompts", "prompts"), Rung("seed search", "prompts", {"seeds": 8})),
    ),
    "standard": STANDARD,
    "paper": PAPER,
}
