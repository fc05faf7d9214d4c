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
  REST_DEPLOY_INTERNAL = 8
} rest_deploy_code;

/* A loaded model. */
typedef struct rest_deploy_session rest_deploy_session;

/* threads: of one call, 0 for all cores; requests: calls under way at a time, 0 for 8. On success
 * *session is the caller's, to be closed. */
REST_DEPLOY_API rest_deploy_code rest_deploy_open(const char* path, int threads, int requests,
                                                  rest_deploy_session** session);

/* NULL is allowed. */
REST_DEPLOY_API void rest_deploy_close(rest_deploy_session* session);

/* Backend and device part, e.g. "openvino/cpu"; valid until the session is closed. */
REST_DEPLOY_API const char* rest_deploy_backend(const rest_deploy_session* session);

/* Of the classifier; 0 for a model without one. */
REST_DEPLOY_API size_t rest_deploy_num_classes(const rest_deploy_session* session);

/* UTF-8, valid until the session is closed; NULL where there is no such class. */
REST_DEPLOY_API const char* rest_deploy_label(const rest_deploy_session* session, size_t index);

/* Height and width of the tensors that rest_deploy_preprocess makes, pixels. */
REST_DEPLOY_API int rest_deploy_input_size(const rest_deploy_session* session);

/* JPEG or PNG bytes -> normalized (3, size, size) float32. capacity: floats that `tensor` has room
 * for, at least 3 * size * size. */
REST_DEPLOY_API rest_deploy_code rest_deploy_preprocess(const rest_deploy_session* session,
                                                        const uint8_t* bytes, size_t byte_count,
                                                        float* tensor, size_t capacity);

/* images: (batch, 3, height, width) float32, normalized -> logits: (batch, classes). capacity:
 * floats that `logits` has room for, at least batch * classes. An image with NaN or infinity gets
 * NaN logits. */
REST_DEPLOY_API rest_deploy_code rest_deploy_infer(const rest_deploy_session* session,
                                                   const float* images, size_t batch, size_t height,
                                                   size_t width, float* logits, size_t capacity);

/* One image's logits -> its most probable classes, best first. *count: in, how many are wanted and
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
