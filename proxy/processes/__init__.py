"""The processes of `overcoat serve`: how they start, what signals do, reload, and what they write for their operator.
`proxy.commands.serve` calls it. With one worker, the process that was started serves. With several, it becomes the
parent: it listens, starts the workers, replaces those that end, and hands each new policy to all of them.

Offers:

- `admin`: AdminSockets; the admin address: metrics, `/live`, `/ready` and the status page
- `alone`: Alone; the process that serves alone, with one worker
- `apart`: Reading; the policy is read by a process of its own
- `children`: Desk, Equipment, administer, work; what a worker and the process for the admin address do
- `decisionlines`: open_lines; writes decision lines
- `manager`: tell_manager; tells systemd that the sidecar is ready, or drains
- `metricsfiles`: prepare_metrics; where several workers keep their metrics
- `readable`: Form, form_for; decision lines for people
- `recent`: Recent; the last decision lines, for the status page
- `reload`: Reader; has the policy read again
- `reminder`: Reminder; warns while a sidecar runs of what ends soon
- `secrecy`: SecretVariables, keep_private; keeps memory and environment from other users
- `signals`: take_over_signals; what each signal asks for
- `starting`: asks_to_constrain, bind_own, first_constraints, obstacles, unfit; whether the addresses can be listened
  on, and the local CA may sign
- `supervisor`: Seat, Shared, Supervisor, SupervisorFailed; the parent
"""
