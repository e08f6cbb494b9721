"""Methods of one's own: a criterion, a schedule and a recovery are functions with these parameters."""

from pruning.schedules import count_to_prune


def power(context, *, alpha=2.0):
    """Return |w|^alpha for every weight; the lowest scores are removed."""
    return {name: weight.double().abs() ** alpha for name, weight in context.weights.items()}


def in_steps(pools, *, amount, round, rounds=2):
    """Return how many units each pool loses at a round: equal parts of the amount."""
    return count_to_prune(pools, amount * round / rounds)


def leave(context, state, *, round):
    """Return the network as pruning left it."""
    return state
