"""New weights into a built engine, without building it again."""

from __future__ import annotations

from rest_deploy.engine import tensorrt
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import ArtifactError, BuildError
from rest_deploy.runtime.cuda import Cuda

SHOWN = 3
"""Names of weights in an error."""


def refit(engine: bytes, flavour: Flavour, graph: bytes, cuda: Cuda) -> bytes:
    """engine: checked by `loading.check_engine`; graph: the ONNX model with the new weights, equal
    to the one the engine was built from in everything else -> the engine, still refittable.

    Raises `ArtifactError` (TensorRT refuses the engine) and `BuildError` (the weights do not fit).
    """
    trt = tensorrt.load(flavour)
    log = tensorrt.Log(trt)
    with cuda.current():
        loaded = trt.Runtime(log.logger).deserialize_cuda_engine(engine)
        if loaded is None:
            raise ArtifactError(f"{flavour} refuses the engine: {log.last()}")
        refitter = trt.Refitter(loaded, log.logger)
        parser = trt.OnnxParserRefitter(refitter, log.logger)
        if not parser.refit_from_bytes(graph):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            words = "; ".join(errors) or log.last()
            raise BuildError(f"the new weights do not fit the engine: {words}")
        missing = list(refitter.get_missing_weights())
        if missing:
            raise BuildError(
                f"{len(missing)} weights of the engine are not in the new model: "
                f"{', '.join(missing[:SHOWN])}"
            )
        if not refitter.refit_cuda_engine():
            raise BuildError(f"{flavour} refused the new weights: {log.last()}")
        config = loaded.create_serialization_config()
        config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        return bytes(loaded.serialize_with_config(config))
