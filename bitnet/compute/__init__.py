"""Operations over arrays and threads; the only room with OpenMP."""
