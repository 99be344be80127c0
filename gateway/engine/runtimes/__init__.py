"""The runtimes behind `gateway.engine.runner.Runtime`; the only place of the engine that imports their libraries."""
