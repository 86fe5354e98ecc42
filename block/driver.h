/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: drivers that register themselves while a module is being loaded. Main loop. */
#pragma once

#include <stdbool.h>

/* From now on drivers that register are kept apart, until it is known whether their module can be used. */
void blk_drivers_hold(void);
void blk_drivers_release(bool good);
