//! Steps of unwinding, generic over how memory is read.
