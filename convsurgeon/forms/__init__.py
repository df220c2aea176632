"""The forms that a dense conv can take: one file each, from the algebra of its factors to its JSON.

Below them stand what a conv is (`geometry`), the algebra that they share (`svd`, `systems`, `leastsquares`), how ranks
are chosen (`ranks`), the modules that are built (`modules`) and the class that all forms derive from (`form`).
`catalogue` lists the forms that ship, reads them from JSON and says which are tried by default; nothing else in the
package knows one form from another.
"""
