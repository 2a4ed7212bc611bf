from qrag_jax.rundir.early import end_at_once_while_importing

end_at_once_while_importing()
