/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to base/: how its threads are made. */
#pragma once

#include <pthread.h>

/* As pthread_create(). Signals that ask the process for something go to the main thread: these threads block all but
 * the faults of their own. */
int thread_create_without_signals(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *arg), void *arg);
