r"""Unicode categories as pre-tokenizers see them: every character as one of a few class letters.

Pre-tokenizers are regular expressions over \p{L}, \p{N}, \p{P}, \p{S}, \p{M} and white space. Which characters those
are depends on the version of Unicode, and neither Python's `re` nor a table that moves with Python's version gives
the same tokens everywhere. So the categories of Unicode 15.1, the version llama.cpp's tables hold, are kept here; text
is collapsed to one class letter a character (ASCII stays as it is) and matched with plain `re`.
"""

from __future__ import annotations

import base64
import zlib
from bisect import bisect_right
from functools import cache

LETTER, NUMBER, PUNCTUATION, MARK, SYMBOL, OTHER = "\xd2", "\xd1", "\xd3", "\xd4", "\xd5", "\xd0"
SPACE = "\x0b"  # every white space outside ASCII
HAN_LETTER, HAN_OTHER = "\xd6", "\xd7"

# regex class body of a category in collapsed text: its ASCII members, then its class letter
CATEGORIES = {
    "N": "0-9" + NUMBER,
    "L": "A-Za-z" + LETTER,
    "P": r"!-#%-*,-/:-;?-@\[-\]_\{\}" + PUNCTUATION,
    "M": MARK,
    "S": r"$+<->^`|~" + SYMBOL,
}

_CODES = (OTHER, LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, SPACE)
# runs of one class from U+0080 on: a byte for the class (index in _CODES), the distance from the run before as a
# little-endian base-128 number; deflated, base 85. tests/text/test_unicode_class.py compares it with unicodedata.
_RUNS = (
    "c-nneONeDx72SKEv+uk2zJJxLZ+BI_>Qw)$y87Q8ZDW}>Elo=l#18F15u@S<3@8XXkr2#4BS^qO1_3|xKoH_Y>5Ljt1V7LN4UVJ{{D2Z1H5oW?t$"
    "lBGRfp){ym#)o=j^k8YwvXn7cG{vx@LD(<4iD8c2mWZCFOt8jEOH`tYQ2H&)(Ak&UA1L2W+g*QGytRWTlWyahN4OVN9^^BN*ROi0;U3t{sUzMLsU"
    "(Cdo8!VPHeHX5eHg2Q=r59pjvwDw<jD3ifHTlW8v3u~qY@V1WuW!b4$@$VCXPJ@FnHC|A^0A<^uXLPi>BZR=W5t|q}U-C*;Os9G6sQ1NUs#PX6P%"
    "&2!)-52p+Sf!<%kVWiVw~O4ZGc?cYY{{UR+9*6ws?j$xk9j9Nk|eaI#)fy8^ZpWVU@O*>Sm=&lFQ`Agft{3A#GXBAwma~i`(RGY6Qt1D5s?I~ARu"
    "MRsY6cH#%I4AZ?!5hXgz!f8AIwwi<ls=kGAVOTDD(CYZ>Hpuy>zb4$maYsN3u)U_GTF*Fu7Zq!c4z^k5NO5gKJ`WCf$=edy`x(4x@>DJr9fw>K7K"
    "+-|ySi8Yo;ojXar!=1UYV^2c;hz<Lt6k$UvA!celSk`*djx)!0&j2N~1gVhdv&QmS-SgcHEL&{jfWyK)2z9)V7^FgKWIOfl+3C2i17xXnatVjl(B"
    "|+%e-VF+&D=satwJi-!;(bH4E~z}@X3dSy8%<F@QHCABY<n+j}3r%5(c|;Az=gWOW0K4ytxyVde~0tgt`E8$V;3}fg7X6c<w`U#M)|B1R$RJIrYj"
    "XG5@`36VOg;1n0-w|Mhox2O!Gh?ffcSlTwA!l6(Zy3b~2Zg4p$cu?%T3hWnS9MfpZz9+l8)28Sz~&CIR}Po_QTYZGP6?R=hMzj})JD<jP~<ifh#6"
    "J9Lj79_zPcBr-Jn%1(0{mj&!XVj-e{K{%Xpeviml4Z#0Lhd13U{%5C3y81E3Sg<bw`eCbLk!Z+pxABe7<rI@JmA->T#1E$SG7<1wkd;L!p|Er!Ho"
    "{x5-hFr2JWqZ{gd!C?6#7nQ0G|a5GQTw4dmZd-I4DR!9~QU`7c|S?~XOBUC_XbYlBtHQ-q=53Xn*A#k$}E>1Hn$F+<pWg3-@f^x(}=)FRY0pbl1h"
    "og2jWJ;}NaW!;C$Dx6t~StmleYteL?cEAen;ynaAyBDIO=OES5Cvtv^KPzY{|50C(ZkqEe>1m(O|HvpAtN9G-;~Fl0IbrR+*gD152W&wAhJMcf%K"
    "j0RD0^ZaJ(9O_IU=Msh-y(qdj8J=JWX{QYEFUTo*$BB;OCb2<PG)ZV$`HrVp~JY@E&|pAq8L+GYu<ELA}X##z4X^AB*gFA$&gWbY(`Hm;#(#oEym"
    "+otjo11;U4EiuqBv^sf2cbBOdyKf#T1NvnJc@?OFvhzRS*#I`e1GI|!GovyKmA-1J1cm+>?7MAbe+P!MCXd~A1;0<aE&aMM-UO>GfpGU<+Z?Lm6g"
    "IWa)At`2HS|To)@5tSQnL8GwpP@QXz<RNr2Sg+B0M|!DPBk=SIvht2uj0nCt>I7@w4|vxXNlLSJQm1oa(9t=X2?cfDnw+_=6JCeJBKrUAS4}M&g^"
    "_meJ|uk&!9Lg0J>-Ng(u}r!sPRM1V?&Mh$KmwqESBlVcUw~UzD+q@;@245j<yd5y()~UQ~!YqCfEa7$P|c+LeNa@n{ZFFM{<r7Yk%!2K*U)%geDw"
    "R<_LT902((B<r48fFWWGB81V8=G=q8WsKQYKR^twJS1PwE~qWC<*1|ncp8(2c>_lEZQFvv&m%Grf5wK03Ak9AvVJD;xl~34IYL*+YOuWxXpO|f$_"
    "aT@TPI>M#xan&^AYN9=&(l^9(}$lKWFcnN32R+gh47NqDwv%#_^ubmLCw03nZvo`U29RgY+-4^K@e>Z1FTNMRfS(O#JT1Wq6SB9bx~ew!1T9a`2="
    "SnMlrpLsI1qt7uwbQ%Ng$I|U-t4nj8K1BENOh>abYhnP}kabt;$2j@yXy#26T*GqCv`*JRIP*patUZT?9MtP@M%(yVZ>;|y20+V5i&8Kc=8qC{Fr"
    "dmhR9E43|0faNzg*-$v&u9V6a#D~AVzxkv*|`BiT(^`u0l9=L2hpBsfra$PqNHiaI;{i1J`?(ECpq{&a)N}t3xWdLn|n>ez}YAE_2P(FroM%3OOL"
    "I`idcVVN~kS0YAN9^i9-T;tdRV;;`87F>ICQs*$r85#AFqUPIA;9`cH2w?u4vd=>o|vTI%UMW<sPcn<x-D3u4k|p=Mjvi*f*W3=y;*D=zf9qqYf0"
    "sy>@`kS)DXTif18Z5M-wS$v9U@I<H$x>4&j?zN*-fW4sM33|X-(~glH!<}WgTD5DZ@`zOr#`WboGNaZ9LHX=3Nw$`Jm1<cbzGW3!&Ko~guJ8H|04"
    "stRYP9~2?K+_dXmH1r{*AXzqK|h!GcX)}1$5d<h!SOo=wwutJ~rIM#-Y#QS{AQYI_Wd=rBJdfzf}F*B!3c;`|?^DRlY#5f4nBY&U)vn+{uBnwnEE"
    "?T1Eub17S5n(P3B4!GB>|oti|LgL<?2nx~z-fK2(c+=$kpatUf?sJN3G(ygFcrUQ9v8)$l?LNTfI?@vW??IzR@O&PqEmevpOvXpNpePKqvfNT251"
    "=63|t-+Yx-;h&qF1nd~#jnT%RBkznw^y7W76piHi7L>sRgky$_?$h-8koK&699RFhW!jezoaj!d=$5Tp!wEqpc|Z8qsVHj;rm*OTDH#zTgZ6(?Z>"
    "r0;Gi!dWJ~RL_5b+?1vEcv-^hLmPCiQ(ZUeG#1b!I7AL_jlH3d0ge{8-$#sR8Gi>S~~*gEchPPUBosuRVz`9isC_$XE#+a`KJ?F{0*WC!`6fAdf_"
    "KkOVTzhaYR?>uhrha}}b=34r0;qM0PVD-r9gT9rx{};{S1FZmUD|p=sZMt+3-@W@8XL{TIw~yU-yE&2f$)oHsEKaS*$9^8X@H-}(i0!k8<q&;t2-"
    "7(Zry5=I`|6iv1ru(m$YH?;3V%iAPx#`3gcMEjtC)WR3?~@A599x`1B_TZhW}LvHh&ti#VrFo@DRnFif&wDtr5@hGW-6ebQt=6vy}Vz7MjZIQ~2V"
    "~H0=2;B=t|<g)DzF>knq-)vSN%%5RUruKQEF_xefsxBeFf6sS="
)

# blocks of Han characters as the kimi-k2 pre-tokenizer defines them (first, last)
_HAN = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2CEB0, 0x2EBEF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@cache
def _runs() -> tuple[list[int], list[str]]:
    """First code point and class letter of each run, ascending."""
    packed = zlib.decompress(base64.b85decode(_RUNS))
    starts, classes = [0], [OTHER]
    at, code = 0, 128
    while at < len(packed):
        letter = _CODES[packed[at]]
        distance = shift = 0
        while True:
            at += 1
            distance |= (packed[at] & 127) << shift
            shift += 7
            if packed[at] < 128:
                break
        at += 1
        code += distance
        starts.append(code)
        classes.append(letter)
    return starts, classes


class _Collapse(dict[int, str]):
    """A `str.translate` table that finds a character's class when it first meets it; ASCII maps to itself."""

    def __missing__(self, code: int) -> str:
        if code < 128:
            letter = chr(code)
        else:
            starts, classes = _runs()
            letter = classes[bisect_right(starts, code) - 1]
        self[code] = letter
        return letter


class _CollapseHan(_Collapse):
    """The same with Han characters apart: letters among them, and the rest of their blocks."""

    def __missing__(self, code: int) -> str:
        letter = super().__missing__(code)
        if any(first <= code <= last for first, last in _HAN):
            letter = HAN_LETTER if letter == LETTER else HAN_OTHER
            self[code] = letter
        return letter


class _WideSpace(dict[int, int]):
    """A `str.translate` table that maps white space outside ASCII to SPACE and leaves everything else."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(SPACE) if code >= 128 and COLLAPSE[code] == SPACE else code
        return self[code]


COLLAPSE = _Collapse()
COLLAPSE_HAN = _CollapseHan()
WIDE_SPACE = _WideSpace()
