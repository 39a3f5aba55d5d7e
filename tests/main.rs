//! One integration-test binary; each module opens with a line on its purpose.
