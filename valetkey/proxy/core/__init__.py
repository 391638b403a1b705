"""Pure decisions: routing, decision, permit, header policy, cache policy. No I/O, no clock."""
