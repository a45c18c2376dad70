"""The table of what exactness costs: figures by hand."""

from benchmarks import exactness


def test_costs_are_medians_in_per_cent_of_a_step():
  costs = exactness.Costs()
  costs.seconds = {
    'rollout': [90.0, 4.0, 3.0, 5.0],
    'fast': [90.0, 2.0, 4.0, 3.0],
    'batch': [9.0, 0.5, 0.5, 0.5],
    'score': [9.0, 2.5, 2.0, 3.0],
    'student': [9.0, 1.25, 1.0, 1.5],
    'update': [9.0, 3.0, 3.0, 2.0],
    'records': [0.1, 0.2, 0.3, 0.2],
    'checkpoint': [0.1, 0.5, 0.5, 0.5],
  }
  said = [line.split() for line in exactness.lines(costs, 20.0)]
  assert said[0][:3] == ['a', 'step:', '10.00']  # 4 + 0.5 + 2.5 + 3.
  shares = {words[0]: words[-1] for words in said[6:]}
  assert shares == {
    'products': '10.0%',
    'scores': '12.5%',
    'records': '2.0%',
    'checkpoint': '5.0%',
    'evaluation': '200.0%',
  }


def test_what_is_timed_is_what_was_called():
  costs = exactness.Costs()
  assert [costs('sum', lambda: sum(range(10**6))) for _ in range(3)] == [
    499999500000
  ] * 3
  assert len(costs.seconds['sum']) == 3 and min(costs.seconds['sum']) > 0
