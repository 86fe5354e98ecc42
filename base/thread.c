/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How base/'s threads are made (thread_internal.h). */
#include "thread_internal.h"

#include <signal.h>

int thread_create_without_signals(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *arg), void *arg)
{
    sigset_t block, old;

    sigfillset(&block);
    sigdelset(&block, SIGSEGV);
    sigdelset(&block, SIGBUS);
    sigdelset(&block, SIGFPE);
    sigdelset(&block, SIGILL);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    int ret = pthread_create(thread, attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return ret;
}
