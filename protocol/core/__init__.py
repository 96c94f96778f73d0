"""The pure kit that both engines share: events and effects, cursors, errors, timers, anti-replay."""
