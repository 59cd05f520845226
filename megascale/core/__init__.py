"""All judgement: events and a time in, effects and reasons out.

`Core.step(event, now)` is a deterministic state machine. It reads no clock, opens no socket and draws no
randomness; a thin shell (driver, simulator, replay) feeds it and performs its effects.
"""
