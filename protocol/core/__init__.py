"""The pure kit of both engines: events and effects, cursors, errors, timers, anti-replay."""
