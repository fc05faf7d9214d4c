# TensorRT or TensorRT-RTX from NVIDIA's SDK below TENSORRT_ROOT, CUDA's runtime below CUDA_ROOT.
# Nothing distributes these headers as a package: both folders are the user's.
# Defines the target rest_deploy_tensorrt and the variable TENSORRT_FLAVOUR.

function(rest_deploy_require variable what where)
  if(NOT ${variable})
    message(FATAL_ERROR "${what} is not below ${where}")
  endif()
endfunction()

find_path(TENSORRT_INCLUDE NvInferRuntime.h HINTS ${TENSORRT_ROOT}/include NO_DEFAULT_PATH)
rest_deploy_require(TENSORRT_INCLUDE NvInferRuntime.h "TENSORRT_ROOT=${TENSORRT_ROOT}")
file(STRINGS ${TENSORRT_INCLUDE}/NvInferVersion.h rtx REGEX "define +TRT_MAJOR_RTX")
if(NOT TENSORRT_FLAVOUR)
  set(TENSORRT_FLAVOUR "tensorrt")
  if(rtx)
    set(TENSORRT_FLAVOUR "tensorrt-rtx")
  endif()
endif()
set(names nvinfer libnvinfer.so.11 libnvinfer.so.10)
if(TENSORRT_FLAVOUR STREQUAL "tensorrt-rtx")
  set(names tensorrt_rtx libtensorrt_rtx.so.1)
endif()
find_library(TENSORRT_LIBRARY NAMES ${names}
             HINTS ${TENSORRT_ROOT}/lib ${TENSORRT_ROOT}/lib64 ${TENSORRT_ROOT} NO_DEFAULT_PATH)
rest_deploy_require(TENSORRT_LIBRARY "the library of ${TENSORRT_FLAVOUR}"
                    "TENSORRT_ROOT=${TENSORRT_ROOT}")
find_path(CUDA_INCLUDE cuda_runtime_api.h HINTS ${CUDA_ROOT}/include)
rest_deploy_require(CUDA_INCLUDE cuda_runtime_api.h "CUDA_ROOT=${CUDA_ROOT}")
find_library(CUDA_LIBRARY NAMES cudart libcudart.so.13 libcudart.so.12
             HINTS ${CUDA_ROOT}/lib64 ${CUDA_ROOT}/lib)
rest_deploy_require(CUDA_LIBRARY libcudart "CUDA_ROOT=${CUDA_ROOT}")
message(STATUS "${TENSORRT_FLAVOUR}: ${TENSORRT_LIBRARY}, ${CUDA_LIBRARY}")

add_library(rest_deploy_tensorrt INTERFACE)
# SYSTEM: warnings of NVIDIA's headers are not ours.
target_include_directories(rest_deploy_tensorrt SYSTEM
                           INTERFACE ${TENSORRT_INCLUDE} ${CUDA_INCLUDE})
target_link_libraries(rest_deploy_tensorrt INTERFACE ${TENSORRT_LIBRARY} ${CUDA_LIBRARY})
