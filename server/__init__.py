"""The operator's processes: store, enrolment, gateway, rounds, release line, rollouts, REST."""
