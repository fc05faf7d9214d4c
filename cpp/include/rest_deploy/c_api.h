/* The runtime for C, and for what calls C.
 *
 * Every function is safe to call from several threads at once, also with the same handle, but for
 * rest_deploy_close: after it a handle must not be used. A function that can fail returns a
 * code and stores what was wrong for this thread: rest_deploy_last_error().
 * No exception leaves these functions.
 */
#ifndef REST_DEPLOY_C_API_H
#define REST_DEPLOY_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "rest_deploy/api.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rest_deploy_code {
  REST_DEPLOY_OK = 0,
  REST_DEPLOY_ARGUMENT = 1,    /* an argument that cannot be used */
  REST_DEPLOY_ARTIFACT = 2,    /* a model file or its sidecar is damaged, foreign, out of step */
  REST_DEPLOY_IMAGE = 3,       /* an image cannot be decoded or is outside the limits */
  REST_DEPLOY_SHAPE = 4,       /* a shape that the model does not accept */
  REST_DEPLOY_MISSING = 5,     /* a backend or device is not here */
  REST_DEPLOY_DEVICE = 6,      /* the device failed */
  REST_DEPLOY_NO_MEMORY = 7,
  REST_DEPLOY_INTERNAL = 8,
  REST_DEPLOY_SELFTEST = 9     /* an engine answers otherwise here than where it was built */
} rest_deploy_code;

/* A loaded model. */
typedef struct rest_deploy_session rest_deploy_session;

/* threads: of one call, 0 for all cores; requests: calls under way at a time, 0 for 8. On success
 * *session is the caller's, to be closed. */
REST_DEPLOY_API rest_deploy_code rest_deploy_open(const char* path, int threads, int requests,
                                                  rest_deploy_session** session);

/* The same, without asking whether the engine answers here as where it was built. */
REST_DEPLOY_API rest_deploy_code rest_deploy_open_untested(const char* path, int threads,
                                                           int requests,
                                                           rest_deploy_session** session);

/* NULL is allowed. */
REST_DEPLOY_API void rest_deploy_close(rest_deploy_session* session);

/* Backend and device part, e.g. "openvino/cpu"; valid until the session is closed. */
REST_DEPLOY_API const char* rest_deploy_backend(const rest_deploy_session* session);

/* Of the classifier; 0 for a model that gives neither logits nor probabilities. */
REST_DEPLOY_API size_t rest_deploy_num_classes(const rest_deploy_session* session);

/* UTF-8, valid until the session is closed; NULL where there is no such class. */
REST_DEPLOY_API const char* rest_deploy_label(const rest_deploy_session* session, size_t index);

/* Height and width of the tensors that rest_deploy_preprocess makes, pixels. */
REST_DEPLOY_API int rest_deploy_input_size(const rest_deploy_session* session);

typedef enum rest_deploy_kind {
  REST_DEPLOY_LOGITS = 0,        /* (batch, classes) */
  REST_DEPLOY_PROBABILITIES = 1, /* their softmax */
  REST_DEPLOY_EMBEDDING = 2,     /* (batch, channels) */
  REST_DEPLOY_FEATURES = 3       /* (batch, channels, ceil(height/stride), ceil(width/stride)) */
} rest_deploy_kind;

/* One output of the model. name: UTF-8, valid until the session is closed. stride: of a map, pixels a
 * cell; 0 for a vector. unit_length: an embedding of L2 norm 1. */
typedef struct rest_deploy_output {
  const char* name;
  rest_deploy_kind kind;
  size_t channels;
  size_t stride;
  int unit_length;
} rest_deploy_output;

/* In the model's order; at least one. 0 without a session. */
REST_DEPLOY_API size_t rest_deploy_num_outputs(const rest_deploy_session* session);

REST_DEPLOY_API rest_deploy_code rest_deploy_describe(const rest_deploy_session* session,
                                                      size_t index, rest_deploy_output* output);

/* Floats of an output for such images; 0 where there is no such output. */
REST_DEPLOY_API size_t rest_deploy_output_size(const rest_deploy_session* session, size_t index,
                                               size_t batch, size_t height, size_t width);

/* 1 for a model that takes pixels and normalizes them itself, 0 for normalized floats. */
REST_DEPLOY_API int rest_deploy_takes_pixels(const rest_deploy_session* session);

/* JPEG or PNG bytes -> normalized (3, size, size) float32. capacity: floats that `tensor` has room
 * for, at least 3 * size * size. */
REST_DEPLOY_API rest_deploy_code rest_deploy_preprocess(const rest_deploy_session* session,
                                                        const uint8_t* bytes, size_t byte_count,
                                                        float* tensor, size_t capacity);

/* JPEG or PNG bytes -> (size, size, 3) pixels, RGB, resized and cropped, for a model that takes them.
 * capacity: bytes that `pixels` has room for, at least size * size * 3. */
REST_DEPLOY_API rest_deploy_code rest_deploy_preprocess_pixels(const rest_deploy_session* session,
                                                               const uint8_t* bytes,
                                                               size_t byte_count, uint8_t* pixels,
                                                               size_t capacity);

/* images: (batch, 3, height, width) float32, normalized -> the first output, of a classifier logits:
 * (batch, classes). capacity: floats that `logits` has room for, at least batch * classes. An image
 * with NaN or infinity gets NaN logits. */
REST_DEPLOY_API rest_deploy_code rest_deploy_infer(const rest_deploy_session* session,
                                                   const float* images, size_t batch, size_t height,
                                                   size_t width, float* logits, size_t capacity);

/* Every output, in the model's order. images: (batch, 3, height, width) float32, or NULL and pixels:
 * (batch, height, width, 3), what rest_deploy_takes_pixels says. outputs: as many as the model has,
 * NULL for one that is not wanted; capacities: floats that each has room for, at least
 * rest_deploy_output_size. */
REST_DEPLOY_API rest_deploy_code rest_deploy_infer_all(const rest_deploy_session* session,
                                                       const float* images, const uint8_t* pixels,
                                                       size_t batch, size_t height, size_t width,
                                                       float* const* outputs,
                                                       const size_t* capacities);

/* One image's logits, or probabilities of a model that gives no logits -> its most probable classes, best first. *count: in, how many are wanted and
 * what both arrays have room for; out, how many were written. */
REST_DEPLOY_API rest_deploy_code rest_deploy_best(const rest_deploy_session* session,
                                                  const float* logits, size_t* indices,
                                                  double* probabilities, size_t* count);

/* What was wrong with this thread's last call that failed; "" before one did, and for NO_MEMORY and
 * INTERNAL. Valid until this thread's next call. */
REST_DEPLOY_API const char* rest_deploy_last_error(void);

/* Of the library: "0.1.0". */
REST_DEPLOY_API const char* rest_deploy_version(void);

#ifdef __cplusplus
}
#endif

#endif
