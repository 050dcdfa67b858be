"""One replica's inference, without Ray: tokens, slots, policy, forward and the line."""
