/* What the shared library exports. */
#ifndef REST_DEPLOY_API_H
#define REST_DEPLOY_API_H

#define REST_DEPLOY_API __attribute__((visibility("default")))

#endif
