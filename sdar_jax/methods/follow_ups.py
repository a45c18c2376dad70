"""Later rows of the table: controls, and SDAR's followers. No JAX."""

from sdar_jax.methods import crediting, estimators, teachers
from sdar_jax.methods.interface import Algorithm
from sdar_jax.methods.sdar import (
  GATE_NUMBERS,
  GATED,
  NO_REWARD,
  numbers,
  policy,
  taught,
)

ROWS: dict[str, Algorithm] = {
  'opsa': policy(
    'the least likely tokens pushed down, the more the less sure; no reward',
    'arXiv 2608.31046',
    numbers(unlikely_share=0.2, unlikely_advantage=-0.5),
    advantages=estimators.self_adapted,
    compares_members=False,
    reads_entropy=True,
  ),
  'sdar-none': taught(
    "SDAR whose teacher sees the student's own prompt",
    'ours, a control',
    GATED,
    {**GATE_NUMBERS, **numbers(context='none')},
  ),
  'sdar-other-task': taught(
    "SDAR whose teacher sees another task's skills",
    'ours, a control',
    GATED,
    {**GATE_NUMBERS, **numbers(context='other_task')},
  ),
  'sdar-shuffled': taught(
    'SDAR whose teacher sees the skills with their words permuted',
    'ours, a control',
    GATED,
    {**GATE_NUMBERS, **numbers(context='shuffled')},
  ),
  'low-prob': taught(
    'GRPO and a constant advantage of the least likely tokens, without a teacher',
    'a control, after arXiv 2608.31046',
    crediting.UNLIKELY,
    numbers(unlikely_advantage=-0.5, unlikely_share=0.2),
  ),
  'rlcsd': taught(
    'the contrast of a right with a wrong hint, squashed, added to advantages',
    'arXiv 2606.11709; THU-BPM/RLCSD@7eeff3c',
    crediting.HINTED,
    numbers(contrast_coef=0.5, gap_scale=0.02, contrast_floor=0.02),
  ),
  'sipo': taught(
    'the contrast of a solution with a mistake, clipped, added to advantages',
    'arXiv 2609.36742; Yueeeeeeee/SIPO@44d10ba',
    crediting.ANSWERED,
    numbers(contrast_coef=0.5, gap_clip=0.2),
  ),
  'ocsd': taught(
    "what the world's answer changed weighs the tokens of unsure turns",
    'arXiv 2608.04788, an account of it with its equations',
    crediting.OBSERVED,
    numbers(credit_mix=0.5, unlikely_share=0.2),
  ),
  'avsd': taught(
    'the consensus of two views, and more where they agree; no reward',
    'arXiv 2605.20643; duykhuongnguyen/AVSD@3233099',
    teachers.VIEWS,
    numbers(distill_coef=1.0, gap_clip=5.0),
    policy_settings=NO_REWARD,
  ),
  'icsd': taught(
    "SDAR's gates moved, within a turn, to tokens that serve the reward",
    'arXiv 2608.14945, an account of it with its equations',
    teachers.INFLUENTIAL,
    GATE_NUMBERS,
  ),
  'taspo': taught(
    "an episode's advantage redistributed over its actions, mean kept",
    'arXiv 2608.31077, an account of it with its formulas',
    crediting.ACTIONS,
    numbers(credit_clip=0.2, gap_scale=0.1),
  ),
  'opdvr': taught(
    'the gap as credit where the outcome agrees with its sign',
    'arXiv 2608.24696; LeapLabTHU/OPDVR@048a78d',
    crediting.VERIFIED,
    numbers(gap_coef=1.0),
  ),
  'grpd': taught(
    'the gap as the size of an advantage that agrees with its sign',
    'arXiv 2608.24696; LeapLabTHU/OPDVR@048a78d',
    crediting.RELATIVE,
    numbers(gap_coef=1.0),
    policy_settings=numbers(divide_by_std=False),
  ),
  'ahead': taught(
    "RLSD on failed episodes, the world's answer in view, warmed down",
    'arXiv 2608.24114, without its written corrections',
    crediting.FAILURES,
    numbers(credit_mix=0.5, credit_clip=0.2, warmdown_steps=100),
  ),
  'hero': taught(
    'top-100 divergence to an averaged self that saw what came next; no reward',
    'arXiv 2606.11559, a summary of it; without its written diagnoses',
    teachers.REFLECTED,
    numbers(
      distill_coef=1.0,
      divergence='jsd',
      topk=100,
      teacher_weights='ema',
      ema_decay=0.99,
    ),
    policy_settings=NO_REWARD,
  ),
  'rstg': taught(
    'the gap as credit in groups where all failed, reward in the others',
    'arXiv 2608.00782, summaries of it; without its choice and weights of tokens',
    teachers.LOST,
    numbers(distill_coef=0.01, gap_clip=5.0),
  ),
  'uniopsd': taught(
    "a turn's own and its teacher's credit, fused by what each is worth",
    'arXiv 2609.34810; Zenghuang-Fu/Uniopsd@09913ab',
    crediting.FUSED,
    numbers(credit_mix=0.5, credit_clip=0.2, warmdown_steps=100),
    policy_settings=numbers(gamma=0.95, step_weight=1.0, divide_by_std=False),
    advantages=estimators.anchored,
  ),
  'retire-opd': taught(
    'the gap to a trained teacher as credit, until it retires for good',
    'arXiv 2609.20784, its abstract and README; the averages are ours',
    teachers.RETIRING,
    numbers(distill_coef=0.01, gap_clip=5.0, teacher_weights='given'),
  ),
}
